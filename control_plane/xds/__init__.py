"""The xDS protocol: a sans-I/O state machine per stream and a thin grpc.aio shell around it."""
