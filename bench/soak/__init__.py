"""Random faults of all kinds, one after the other and sometimes two at once, on a real fleet under steady load:
`python -m bench.soak`. tests/scenarios/test_soak.py is its small form.
"""
