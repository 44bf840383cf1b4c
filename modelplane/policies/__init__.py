"""What the commands for operating models have in common: policies in files, in etcd, and on the screen."""
