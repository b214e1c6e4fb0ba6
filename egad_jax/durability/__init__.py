"""Surviving kills, hangs and full disks: checkpoints, the workdir, signals, the watchdog."""
