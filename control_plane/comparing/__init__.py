"""Compares what two versions of a model answer to the same request."""
