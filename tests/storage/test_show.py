import os
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from storage.show import markdown, printable


def test_harmless_text_stays():
    assert printable("Katze 猫 é 🐈 a\\b") == "Katze 猫 é 🐈 a\\b"


def test_escapes():
    assert printable("a\x1b[31m\r\n\u202eb") == "a\\x1b[31m\\r\\n\\u202eb"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


@given(st.text() | st.binary().map(os.fsdecode))
def test_any_text_becomes_one_harmless_line(text):
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    shown.encode()
    assert printable(shown) == shown


def test_markdown():
    assert markdown("<script>`x`</script>") == "&lt;script&gt;\\`x\\`&lt;/script&gt;"
    assert markdown("a_b **c** [d](e) & f") == "a\\_b \\*\\*c\\*\\* \\[d\\]\\(e\\) &amp; f"
    assert markdown("``` \n# x") == "\\`\\`\\` \\\\n\\# x"
