"""The story of each job, top to bottom; `jobs/` parses the flags, calls it, and prints."""
