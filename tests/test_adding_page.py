"""The files of docs/adding.md, written to a folder of their own, and its commands: no existing file changes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion import DDPM, denoising_loss

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding.md").read_text()
FILES = {name: text for _, name, text in re.findall(r"```(python|yaml) title=(\S+)\n(.*?)```", PAGE, re.DOTALL)}
COMMANDS = [line for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, beside a link to the recipes."""
    out = tmp_path_factory.mktemp("beside")
    for name, text in FILES.items():
        (out / name).write_text(text)
    (out / "configs").symlink_to(ROOT / "configs")
    return out


def run(folder: Path, *words: str) -> str:
    """Runs a command of the page that contains all `words`, and returns its output."""
    (command,) = [line for line in COMMANDS if all(word in line for word in words)]
    program, *arguments = shlex.split(command, comments=True)
    assert program == "python"
    more = {"PYTHONPATH": str(ROOT), "HOME": str(folder), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def numbers(run_folder: Path, key: str) -> list[float]:
    """The numbers of this name in the log of a run."""
    rows = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def check_checkpoint(run_folder: Path) -> None:
    """The newest checkpoint has finite weights, and the model folder holds some."""
    newest = max((run_folder / "checkpoints").iterdir())
    assert int(newest.name) > 0
    assert all(weight.isfinite().all() for weight in load_file(newest / "model.safetensors").values())
    assert (run_folder / "model" / "model.safetensors").is_file()


def test_the_files_are_short_and_new() -> None:
    sizes = {name: len(text.splitlines()) for name, text in FILES.items()}
    assert {name for name in sizes if name.endswith(".py")} == {
        "convnext.py",
        "remove_noise.py",
        "trig_flow.py",
        "bars.py",
    }
    assert all(size <= 30 for size in sizes.values()), sizes
    assert not any((ROOT / name).exists() for name in FILES)


def test_a_block_is_a_part_of_a_model_that_can_be_trained() -> None:
    names: dict = {}
    exec(FILES["convnext.py"], names)
    torch.manual_seed(0)
    block, x, emb = names["convnext_block"](8, 16), torch.randn(2, 8, 6, 6), torch.randn(2, 16)
    torch.testing.assert_close(block(x, emb), x, rtol=0, atol=0)  # a new block is its shortcut
    net, x0, time = names["ConvNeXtDenoiser"](), torch.rand(32, 1, 8, 8) * 2 - 1, torch.arange(32.0) * 31
    optimizer, losses = torch.optim.AdamW(net.parameters(), 1e-2), []
    for _ in range(30):
        losses.append(denoising_loss(net, DDPM(), x0, torch.randn_like(x0), time).mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0 < losses[-1].item() < 0.7 * losses[0].item()
    s, f = net.body.block0.parts(torch.randn(2, 32, 8, 8), torch.randn(2, 32))
    assert s.shape == f.shape
    assert f.std() > 0
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.slow
def test_a_task_is_trained_by_the_loop(folder: Path) -> None:
    run(folder, "remove_noise.py")
    losses = numbers(folder / "runs" / "remove_noise", "loss")
    assert np.isfinite(losses).all()
    assert losses
    check_checkpoint(folder / "runs" / "remove_noise")
    weights = load_file(folder / "runs" / "remove_noise" / "model" / "model.safetensors")
    assert weights["first.weight"].shape == (16, 1, 1, 1)  # --width 16
    assert "width: 16" in (folder / "runs" / "remove_noise" / "config.yaml").read_text()


@pytest.mark.slow
def test_an_objective_is_trained_and_sampled(folder: Path) -> None:
    run(folder, "train.main", "trig_flow")
    losses = numbers(folder / "runs" / "trig_flow", "loss")
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    check_checkpoint(folder / "runs" / "trig_flow")
    model = json.loads((folder / "runs" / "trig_flow" / "model" / "diffusion.json").read_text())
    assert model["formulation"] == {"kind": "trig_flow", "max_time": 1.55}
    assert "heun" in run(folder, "sample.main", "trig_flow")
    drawn = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "drawn" / "images").glob("0*.png"))])
    assert drawn.shape == (20, 8, 8)
    assert drawn.std(axis=0).mean() > 10  # the images differ


@pytest.mark.slow
def test_a_source_is_validated_and_trained_on(folder: Path) -> None:
    assert "800" in run(folder, "bars", "--validate")
    run(folder, "bars", "--train.images")
    assert numbers(folder / "runs" / "resnet8-digits", "top1")[-1] > 0.95
    check_checkpoint(folder / "runs" / "resnet8-digits")
