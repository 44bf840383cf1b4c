"""One monitor for all model servers in the containers of one Docker host: `modelplane monitor --docker`."""
