"""Training loops and their state."""
