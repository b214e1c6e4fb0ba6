"""Files and directories: what is read, what is ours, what may be replaced."""
