"""Configs of the networks: frozen dataclasses that need no torch and can be written as JSON."""
