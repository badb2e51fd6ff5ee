"""docs/conditioning.md: its code runs as it is, and the images that it draws follow their sequences."""

import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

PAGE = (Path(__file__).parent.parent / "docs" / "conditioning.md").read_text()


@pytest.mark.slow
def test_the_code_of_the_page_learns_to_follow_a_sequence() -> None:
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    drawn = 3.5 * (names["x"].mean(dim=(1, 2, 3)) + 1)
    assert_close(drawn, torch.tensor([4.0, 2.0]), rtol=0, atol=0.7)
