"""Training state, steps, checkpoints and the loop."""
