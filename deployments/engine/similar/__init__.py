"""Continues the early states of images whose prompts were near (`cache: similar`)."""
