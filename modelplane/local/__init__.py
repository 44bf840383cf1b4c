"""The local stack that `modelplane up` runs: etcd, control plane, Envoy and model servers on one machine."""
