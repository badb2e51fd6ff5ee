"""Trained models as objects: folders that are enough to sample or classify, and pictures of what they draw."""
