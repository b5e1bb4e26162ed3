"""Procedural scenes: the sample of the commands, and training data."""
