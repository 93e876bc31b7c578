"""The training loop in plain torch: the same under Ray Train, torchrun and in one process."""
