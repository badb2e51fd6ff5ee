"""Weights: renaming between layouts of state dicts, model folders, and the hub."""
