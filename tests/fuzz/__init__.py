"""Malformed and real-world inputs: `python -m tests.fuzz` tries random ones for a while, the suite a fixed few."""
