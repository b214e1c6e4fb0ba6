"""What things cost: commands that measure and model, and print markdown."""
