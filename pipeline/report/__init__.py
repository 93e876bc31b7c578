"""One page per run or store: a file that needs nothing else and that nothing in it can run in."""
