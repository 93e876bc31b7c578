"""From what people have (folders, archives, tables) to inputs, each named and counted."""
