"""What there is of runs and generations, what of it may go, and images taken out for good."""
