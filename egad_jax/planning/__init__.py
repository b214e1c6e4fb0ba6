"""Compiles a train step for TPUs that need not be there, and tells whether and how it would run."""
