"""Broken copies of the loss lines, and the check that a test fails for each."""
