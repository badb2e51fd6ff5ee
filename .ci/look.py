"""A look at what the demo wrote: `python .ci/look.py RUN DEMO_LOG`."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

run, demo_log = map(Path, sys.argv[1:])
grid_path = Path(demo_log.read_text().splitlines()[-1].split()[-1])
grid = Image.open(grid_path)
drawn = sorted((run / "drawn" / "images").iterdir())
lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
losses = [line["loss"] for line in lines if "loss" in line]

assert grid_path == run / "drawn" / "grid.png", grid_path
assert len(drawn) == 100, len(drawn)
assert {Image.open(path).size for path in drawn} == {(8, 8)}
assert grid.width > 600, grid.size
assert len(np.unique(np.asarray(grid))) > 50, "the grid is nearly empty"
assert losses[-1] < 0.8 * losses[0], losses
assert (run / "model" / "model.safetensors").is_file()
print(f"looked: {len(drawn)} images, grid {grid.size}, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
