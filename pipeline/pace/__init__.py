"""How fast this machine trains on this data, what holds it up, and which knob would help."""
