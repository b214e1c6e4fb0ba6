"""Reading files, marking directories as ours, and replacing them."""
