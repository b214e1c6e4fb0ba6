"""What lets a run survive: checkpoints, the workdir, signals, hangs."""
