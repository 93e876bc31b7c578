"""Models by name and alias: registration, promotion, lineage."""
