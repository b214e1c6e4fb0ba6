"""Compiles a train step for TPUs that are not there and tells whether and how it would run."""
