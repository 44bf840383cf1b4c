"""A server with TF Serving's API on TensorFlow's own runtime, for a machine without the real binary."""
