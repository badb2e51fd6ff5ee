"""docs/export.md: its code runs as it is, and its tables are those of the script."""

import re
from pathlib import Path

import numpy as np
import pytest

import export
from exporting.options import LAYOUTS, TARGETS
from pipelines.diffusion_folder import load_model
from pipelines.graphs import BATCHES, TOLERANCE
from tests.tasks.small import digits, small_run, train

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
ONNX, PT2, OURS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_target_is_on_the_page() -> None:
    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    layouts = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert layouts - {"--to"} == set(LAYOUTS)
    assert set(re.findall(r"--to (\w+) --out", PAGE)) <= set(TARGETS)
    assert f"above {TOLERANCE:.0e}".replace("e-0", "e-") in PAGE
    assert f"batches of {BATCHES[0]}, {BATCHES[1]} and {BATCHES[2]}" in PAGE


@pytest.mark.slow
def test_the_code_of_the_page_draws_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "digits"
    folder.mkdir(parents=True)
    task = train(small_run(), digits(), 150)
    task.save(task.model, folder)
    model = load_model(folder)
    drawn = model.draw(range(64), model.cycle(range(64)), steps=10, guidance=2.0)
    for target, text in (("onnx", ONNX), ("pt2", PT2)):
        export.main([str(folder), "--to", target, "--out", "exported"])
        names: dict = {}
        exec(text, names)
        images = np.asarray(names["images"])
        assert images.shape == (10, 1, 8, 8)
        assert abs(images.mean() - 127.5 * (drawn.mean().item() + 1)) < 15
    exec(OURS, {})
    assert (tmp_path / "programs" / "step.pt2").is_file()
