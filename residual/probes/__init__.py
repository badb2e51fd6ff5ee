"""Measurements on any model made of `Residual`, by theme: `from residual.probes import gradients, lesions`."""
