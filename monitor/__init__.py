"""Watches one TF Serving instance and writes the truth about it into the registry."""
