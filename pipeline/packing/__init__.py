"""Folders, tars and zips become a dataset: sources, plan, units, commit, ledger, verification."""
