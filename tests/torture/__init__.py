"""Runs that are killed, damaged, asked to stop or left without disk, and must end with the bits of a quiet run.

`python -m tests.torture` does all of it and ends with a table; `--quick` is the form for continuous integration.
"""
