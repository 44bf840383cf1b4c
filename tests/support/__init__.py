"""What the tests share: processes that clean up after themselves, and waiting for conditions."""
