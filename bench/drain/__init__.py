"""How long a drain takes beyond the requests that it waits for: `python -m bench.drain`."""
