"""Signed values in Redis, and where the secrets for that are."""
