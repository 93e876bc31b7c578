"""What a trained model is worth: exact measures, bounds, and what they mean in words."""
