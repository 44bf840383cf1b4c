"""What modelplane costs, measured: one program per question, run from a checkout as `python -m bench.NAME`.

- routing: throughput and latency through Envoy against an instance of its own, and Envoy's CPU time per request.
"""
