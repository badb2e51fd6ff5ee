"""Shows text of unknown origin, such as file and class names, on a terminal and in Markdown."""

import re
import unicodedata

from storage.secret import hide_secrets

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories of control, format (text direction), surrogate, private-use and line-separating characters"""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>&<])")


def printable(text: str) -> str:
    """One line of text without characters that control a terminal or the direction of text: those become escapes.

    Bytes that are no UTF-8, which file names may have, become `\\xNN`. Secrets are hidden, see `hide_secrets`.
    """
    return "".join(
        _escape(character) if unicodedata.category(character) in _HIDDEN else character
        for character in hide_secrets(text)
    )


def markdown(text: str) -> str:
    """One line of Markdown that shows `text` as it is: neither Markdown nor HTML in it takes effect."""
    return _MARKDOWN.sub(r"\\\1", printable(text)).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
