"""What a model's numbers mean, in sentences that are each held by a check, and which slip gives
another number."""
