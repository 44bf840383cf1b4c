"""`python -m model_server`: the same as `modelplane model-server`."""

from __future__ import annotations

import sys

from model_server.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
