"""Models operated under load, by commands: `python -m bench.operating rolling|canary`."""
