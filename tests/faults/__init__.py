"""Real runs of the train command that are killed, starved and damaged; see `__main__`."""
