"""The Python of docs/ode.md prints what its comments show, and its table has every method."""

import re
from pathlib import Path

import pytest
import torch

from residual.ode import STEPS, ODEBlock

PAGE = (Path(__file__).parents[1] / "docs" / "ode.md").read_text()
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_python_of_the_page_prints_its_comments(capsys: pytest.CaptureFixture[str]) -> None:
    exec(CODE, {})
    expected = re.findall(r"^(?:    print.*|print.*)?# (.*)$", CODE, re.MULTILINE)
    assert len(expected) == 8
    assert capsys.readouterr().out.splitlines() == expected


def test_the_table_has_all_methods_with_their_evaluations() -> None:
    rows = [row.split("|")[1:4] for row in PAGE.splitlines() if row.startswith("| `")]
    listed = {name: count.strip() for names, _, count in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == {*STEPS, "dopri5"}
    for name in ("euler", "midpoint", "heun", "rk4"):
        block = ODEBlock(torch.nn.Tanh(), name, steps=1)
        block(torch.ones(1, 1))
        assert listed[name] == str(block.evaluations)
