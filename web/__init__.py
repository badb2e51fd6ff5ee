"""The web page: draws, inpaints, enlarges and classifies with trained models, and follows runs in training.

| to add | change |
|---|---|
| a tab | a function in `page.py`, and what it does without a browser in a file of its own |
| a kind of model | `models.py`, where a folder is described |
| a setting of drawing | `Settings` in `draw.py`, which becomes the command line of sample.py |
"""
