"""What a monitor costs, and how fast it tells, with many models on one instance."""
