"""Keeps secrets out of what is written and printed: tokens of the environment, and passwords in addresses."""

import os
import re

MIN_LENGTH = 8
"""characters of a secret; a shorter value would occur in other texts"""
_NAMES = re.compile(r"(^|_)(TOKEN|API_KEY|ACCESS_KEY|SECRET|SECRET_KEY|PASSWORD)$")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)")


def secret_in(text: str) -> str | None:
    """What secret a text contains, without its value; None if there is none."""
    found = next((name for name, value in _secrets() if value in text), None)
    return found or ("a password in an address" if _IN_ADDRESS.search(text) else None)


def hide_secrets(text: str) -> str:
    """The text, with the name of a variable of the environment in place of its value, and without passwords."""
    for name, value in _secrets():
        text = text.replace(value, f"<{name}>")
    return _IN_ADDRESS.sub("<password>", text)


def _secrets() -> list[tuple[str, str]]:
    """Name and value of each variable of the environment that holds a secret, by its name."""
    return [(name, value) for name, value in os.environ.items() if len(value) >= MIN_LENGTH and _NAMES.search(name)]
