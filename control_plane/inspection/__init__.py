"""What a control plane tells of itself: JSON pages on its HTTP port, CSDS and reflection on its xDS port."""
