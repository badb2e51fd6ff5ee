"""The formats of graphs. Needs no PyTorch, so that a command line shows them at once."""

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
"""formats, and the ends of their files' names"""
