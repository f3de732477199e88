"""The training loop, checkpoints, and their mirror on a drive."""
