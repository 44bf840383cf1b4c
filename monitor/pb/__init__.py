"""Generated from proto/monitor/pb by hatch_build.py."""
