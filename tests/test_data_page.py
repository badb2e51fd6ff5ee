"""docs/data.md: its code reads a cache."""

import re
import warnings
from pathlib import Path

import numpy as np

from training.data import DataConfig, open_images

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_lines_that_read_a_cache(tmp_path: Path, monkeypatch) -> None:
    images = open_images(DataConfig(cache=tmp_path))
    (folder,) = tmp_path.iterdir()
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    found: dict = {}
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # short lines leave a file open
        exec(code, found)
    np.testing.assert_array_equal(found["images"], images.read(np.arange(len(images))))
    np.testing.assert_array_equal(found["labels"], images.labels)
    assert (found["low"], found["high"]) == (0, 255)
