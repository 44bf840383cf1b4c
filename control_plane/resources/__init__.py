"""Pure translation of the catalog into Envoy resources; one module per resource type."""
