"""Generated from proto/control_plane/pb/ by hatch_build.py."""
