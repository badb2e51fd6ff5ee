"""Experiments: claims about residual networks as code that measures them, one module per claim."""
