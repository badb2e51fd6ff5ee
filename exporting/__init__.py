"""Exports from the command line: the options of export.py, and folders for other libraries.

| to add | change |
|---|---|
| a target | `options.py`, where it gets a name and a line of help, and `Export` in `command.py` |
"""
