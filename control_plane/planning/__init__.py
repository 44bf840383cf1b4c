"""What the leader decides. Pure: the fleet and the time in, decisions out."""
