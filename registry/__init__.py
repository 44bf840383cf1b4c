"""The contract between monitors and control plane: keys, records, and the etcd v3 client they travel by."""
