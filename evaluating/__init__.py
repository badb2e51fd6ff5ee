"""Evaluation from the command line: the options of evaluate.py, and the figures that it prints."""
