"""The cache: images decoded once into a folder and memory-mapped from there."""
