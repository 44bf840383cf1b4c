"""What operators want for a model: typed policies, read from JSON documents, and how they are stored. Pure."""
