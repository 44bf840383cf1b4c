"""registry -> catalog -> resources -> streams: turns readiness into Envoy configuration over xDS."""
