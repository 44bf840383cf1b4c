"""What the control plane costs, on real processes: `python -m bench.xds`."""
