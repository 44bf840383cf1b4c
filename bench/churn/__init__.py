"""A real fleet under churn and load: what clients see, and what control planes send, while models come, move and go
and control planes are killed. `python -m bench.churn` runs it at full size, tests/scenarios/test_churn.py small.
"""
