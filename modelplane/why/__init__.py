"""Why requests for a model are answered as they are: from the policy to the endpoints."""
