"""etcd broken in every way that we know, on a real fleet under load: what clients see of it, and how long until the
registry and the Envoys are right again. `python -m bench.outages` runs the rows of docs/outages.md,
tests/scenarios/test_outages.py the same with short leases.
"""
