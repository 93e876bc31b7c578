"""A run's folder: its claims, checkpoints, best weights, history, outbox, incidents."""
