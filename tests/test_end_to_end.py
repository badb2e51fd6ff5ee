"""The scripts as a user starts them: the digits, on one process and on two, in one go and in pieces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

import evaluate
import train
from training.checkpoint import sha256

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "resnet8-digits.yaml"
BATCH = 32
CONFIG = """
data: {source: digits}
augment: {flip: true}
model: {base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_levels: [1], groups: 4,
        conditioning: scale_shift}
objective: {schedule: cosine, prediction: v}
diffusion: {label_dropout: 0.2}
sample: {num: 0}
train: {images: 320, batch: 32, log_every_images: 32, checkpoint_every_images: 192, trackers: [], precision: float32}
optimizer: {learning_rate: 1e-3}
schedule: {warmup_images: 0}
"""
EDM2 = """
data: {source: digits}
model: {kind: edm2, base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_levels: [1],
        head_channels: 16}
objective: {kind: edm}
sample: {num: 0}
train: {images: 320, batch: 32, log_every_images: 32, checkpoint_every_images: 320, trackers: [], precision: float32}
optimizer: {learning_rate: 1e-2}
"""
"""a network whose log-variance and weight normalisation have to work on several processes too"""


def launch(folder: Path, script: str, *arguments: object, processes: int = 1) -> str:
    """Run a script of the project in `folder`; its standard output."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / script), *map(str, arguments)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def train_here(folder: Path, *arguments: object) -> None:
    """Run train.py in `folder`, without another process."""
    forget_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCELERATE_USE_CPU", "1")
        train.main([*map(str, arguments)])
    forget_precision()


def forget_precision() -> None:
    """The next run in this process may have another one."""
    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every run has been trained for ten updates; those in pieces were stopped after six.

    The classifier has seen 640 images. Those on two processes share a start, but for the end of the pieces.
    """
    out = tmp_path_factory.mktemp("runs")
    (out / "digits.yaml").write_text(CONFIG)
    (out / "edm2.yaml").write_text(EDM2)
    digits, edm2 = ["--config", "digits.yaml"], ["--config", "edm2.yaml"]
    dropout = [*digits, "--model.dropout", "0.2"]
    classifier = ["--config", str(RECIPE), "--train.trackers", "[]", "--train.images", "640"]
    classifier += ["--train.eval_every_images", "640"]
    pieces = [*dropout, "--train.images", str(6 * BATCH)]
    accumulated = [*digits, "--train.micro_batch", str(BATCH // 4)]
    for name, flags in {"one": digits, "accumulated": accumulated, "edm2": edm2}.items():
        train_here(out, "--run", name, "--data.cache", "cache", *flags)
    two = {"two": digits, "edm2_two": edm2, "straight": dropout, "pieces": pieces, "classifier": classifier}
    commands = [["--run", name, "--data.cache", "cache", *flags] for name, flags in two.items()]
    launch(out, "tests/several_runs.py", json.dumps(commands), processes=2)
    printed = launch(out, "train.py", "--run", "pieces", "--data.cache", "cache", *dropout, processes=2)
    assert "resuming pieces from 192 images (update 6)" in printed
    return out


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def evaluated(run: Path) -> dict[str, float]:
    """The last evaluation of a classifier in its log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("evaluated")][-1]


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the tensors after the last update: weights, average and optimizer."""
    return {file.name: sha256(file) for file in (run / "checkpoints" / "000000320").glob("*.safetensors")}


@pytest.mark.parametrize(("one", "other"), [("one", "two"), ("one", "accumulated"), ("edm2", "edm2_two")])
def test_processes_and_micro_batches_change_nothing(runs: Path, one: str, other: str) -> None:
    assert len(losses(runs / one)) == 10
    assert losses(runs / other) == pytest.approx(losses(runs / one), rel=0, abs=1e-5)


def test_a_run_in_pieces_is_the_run_in_one_go_bit_for_bit(runs: Path) -> None:
    straight, pieces = runs / "straight", runs / "pieces"
    assert set(hashes(straight)) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert hashes(pieces) == hashes(straight)
    assert losses(pieces) == losses(straight)


def test_dropout_makes_another_run(runs: Path) -> None:
    assert losses(runs / "two") != pytest.approx(losses(runs / "straight"), rel=0, abs=1e-5)


def test_two_processes_count_every_image_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """359 images are 180 and 179; both processes have the batch norms of the first, which are those that are saved."""
    evaluate.main([str(runs / "classifier"), "--data.cache", str(runs / "cache")])
    printed, found = capsys.readouterr().out, evaluated(runs / "classifier")
    for name in ("top1", "top5"):
        count = found[name] * 359
        assert count == pytest.approx(round(count), abs=1e-3)
        assert f"{name}: {found[name]:.4f} ({round(count)} of 359)" in printed
    assert float(printed.split()[-1]) == pytest.approx(found["validation_loss"], abs=1e-3)


def test_the_same_command_again_prints_finished(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(runs, "--config", "digits.yaml", "--run", "one", "--data.cache", "cache")
    assert "finished: one has seen 320 images" in capsys.readouterr().out


def test_a_run_can_be_sampled(runs: Path) -> None:
    printed = launch(runs, "sample.py", "one", "--num", 11, "--steps", 2, "--out", "drawn")
    assert "model: one at 320 images seen" in printed
    assert printed.splitlines()[-1] == "grid: drawn/grid.png"
    images = [f"{k:06d}.png" for k in range(11)]
    assert sorted(path.name for path in (runs / "drawn" / "images").iterdir()) == images
    with Image.open(runs / "drawn" / "images" / "000010.png") as picture:
        assert picture.size == (8, 8)
