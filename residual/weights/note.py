"""Notes about weights that are read. Needs no PyTorch, so that a script can show them without importing it."""

import warnings


class WeightsNote(UserWarning):
    """What was chosen, converted or left out while weights were read."""


def note(text: str) -> None:
    """Reports what was chosen, converted or left out while weights were read."""
    warnings.warn(text, WeightsNote, stacklevel=3)
