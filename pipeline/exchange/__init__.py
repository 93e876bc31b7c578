"""Models of other libraries, in and out: their folders, configs and weight files."""
