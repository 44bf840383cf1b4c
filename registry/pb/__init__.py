"""Generated from proto/registry/pb by hatch_build.py."""
