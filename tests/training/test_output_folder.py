"""Folders that scripts write: what may be replaced, and what a crash leaves."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from storage.write import staging_folder
from training.output_folder import OutputFolder, default_folder, model_home, weights_sha256

FACTS = {"model_folder": None, "seed": 0, "num": 3}
CONTENT = {"images/0.png": b"0", "grid.png": b"g"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run `run`, the model folder `model` and the current folder `here`."""
    for folder in ("run/model", "run/checkpoints/000", "run/samples", "model", "here"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("run/config.yaml", "run/model/weights", "model/weights"):
        (tmp_path / file).write_text("a: 1\n")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def output(path: Path, model: str) -> OutputFolder:
    return OutputFolder(path, model, "record.json", ("images", "grid.png"))


def write(path: Path, model: str, content: dict[str, bytes] = CONTENT, **facts: object) -> None:
    """A whole command."""
    out = output(path, model)
    out.check()
    known = FACTS | {"model_folder": out.model} | facts
    folder = out.begin(known)
    fill(folder, content)
    out.publish(known)


def fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "record.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_output_is_replaced_as_a_whole(root: Path) -> None:
    write(root / "out", str(root / "run"))
    assert content(root / "out") == CONTENT
    write(root / "out", str(root / "run" / "model"), {"images/1.png": b"1"}, seed=1)
    assert content(root / "out") == {"images/1.png": b"1"}
    assert json.loads((root / "out" / "record.json").read_text())["seed"] == 1
    assert {path.name for path in root.iterdir()} == {"run", "model", "here", "out"}


@pytest.mark.parametrize("make", ["absent", "empty", "desktop", "new parents"])
def test_what_may_be_written(root: Path, make: str) -> None:
    out = root / "a" / "b" / "out" if make == "new parents" else root / "out"
    if make in ("empty", "desktop"):
        out.mkdir()
    if make == "desktop":
        (out / ".DS_Store").write_text("")
    write(out, str(root / "run"))
    assert content(out) == CONTENT


REFUSED = {
    "a link": r"is a link to '.*/model'",
    "a dangling link": r"is a link to 'nowhere'",
    "a link to itself": r"is a link to 'out'",
    "a file": r"cannot be a folder, because '.*/out'",
    "a pipe": r"cannot be a folder, because '.*/out'",
    "a socket": r"cannot be a folder, because '.*/out'",
    "below a file": r"cannot be a folder, because '.*/model/weights'",
    "below a link to a file": r"cannot be a folder, because '.*/link'",
    "the current folder": r"current folder",
    "a parent": r"current folder",
    "the root": r"current folder",
    "the empty name": r"current folder",
    "the model": r"folder of the model",
    "the model in other words": r"folder of the model",
    "the model by a link above": r"folder of the model",
    "in the model of a run": r"belongs to training",
    "in the checkpoints of a run": r"belongs to training",
    "in the snapshots of a run": r"belongs to training",
    "the model of a run": r"belongs to training",
    "another run": r"'checkpoints', 'config.yaml', 'model', … \(4 in all\)",
    "photographs": r"'cat.jpg'",
    "hidden files": r"'.git'",
    "an output with notes": r"'notes.txt'",
    "of another model": r"another model, '.*/model'",
    "a damaged record": r"record.json",
    "a record that is a list": r"record.json",
    "a record that is a pipe": r"record.json",
    "a record without a model": r"another model, None",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_work(root: Path, case: str) -> None:
    out, model = root / "out", root / "run"
    if case == "a link":
        out.symlink_to(root / "model")
    elif case in ("a dangling link", "a link to itself"):
        out.symlink_to("nowhere" if case == "a dangling link" else "out")
    elif case == "a file":
        out.write_text("mine")
    elif case == "a pipe":
        os.mkfifo(out)
    elif case == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            os.chdir(root)
            made.bind("out")
    elif case == "below a file":
        out = root / "model" / "weights" / "x" / "y"
    elif case == "below a link to a file":
        (root / "link").symlink_to(root / "model" / "weights")
        out = root / "link" / "x"
    elif case == "the model by a link above":
        (root / "up").symlink_to(root)
        out, model = root / "up" / "model", root / "model"
    elif case in ("another run", "photographs", "hidden files"):
        shutil.copytree(root / "run", out) if case == "another run" else out.mkdir()
        if case != "another run":
            (out / {"photographs": "cat.jpg", "hidden files": ".git"}[case]).write_text("mine")
    elif case == "an output with notes":
        write(out, str(model))
        (out / "notes.txt").write_text("mine")
    elif case == "of another model":
        write(out, str(root / "model"))
    elif "record" in case:
        write(out, str(model))
        (out / "record.json").unlink()
        if case == "a record that is a pipe":
            os.mkfifo(out / "record.json")
        else:
            text = {"a damaged record": "{", "a record that is a list": "[]", "a record without a model": "{}"}[case]
            (out / "record.json").write_text(text)
    paths = {
        "the current folder": Path(),
        "a parent": Path(".."),
        "the root": Path("/"),
        "the empty name": Path(""),
        "the model": root / "run",
        "the model in other words": root / "here" / ".." / "run",
        "in the model of a run": root / "run" / "model" / "x",
        "in the checkpoints of a run": root / "run" / "checkpoints" / "x",
        "in the snapshots of a run": root / "run" / "snapshots" / "x",
        "the model of a run": root / "run" / "model",
    }
    out = paths.get(case, out)
    before = sorted(root.rglob("*"))
    with pytest.raises(ValueError, match=rf"^out='.*{REFUSED[case]}"):
        output(out, str(model)).check()
    assert sorted(root.rglob("*")) == before


def test_a_mount_point_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == root / "out")
    with pytest.raises(ValueError, match=r"out='.*/out' is a mount point"):
        output(root / "out", str(root / "run")).check()


def test_an_output_in_the_folder_of_the_model_moves_with_it(root: Path) -> None:
    write(root / "run" / "drawn", str(root / "run"))
    (root / "run").rename(root / "moved")
    write(root / "moved" / "drawn", str(root / "moved"), {"grid.png": b"new"})
    assert content(root / "moved" / "drawn") == {"grid.png": b"new"}


def test_the_default_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder("../run", "drawn") == Path("../run/drawn")
    assert default_folder("../run/model", "drawn") == Path("../run/drawn")
    assert default_folder("../model", "drawn") == Path("../model/drawn")
    assert default_folder("google/ddpm-cifar10-32", "drawn") == Path("drawn-ddpm-cifar10-32")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_folder("../run", "drawn") == Path("drawn-run")


def test_the_home_of_a_model_has_no_links(root: Path) -> None:
    (root / "link").symlink_to(root / "run" / "model")
    assert model_home(str(root / "link")) == model_home("../run") == root / "run"
    assert model_home("../model") == root / "model"
    assert model_home("google/ddpm-cifar10-32") is None


def begun(root: Path, **facts: object) -> OutputFolder:
    out = output(root / "out", str(root / "run"))
    out.check()
    out.begin(FACTS | {"model_folder": out.model} | facts, keep=("images",), may_differ=("num",))
    return out


def test_the_same_command_keeps_what_was_left(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = begun(root)
    fill(out.staging, CONTENT)
    out.leave()
    again = begun(root, num=4)
    assert content(again.staging) == {"images/0.png": b"0"}
    again.leave()
    other = begun(root, seed=1)
    assert content(other.staging) == {}
    assert capsys.readouterr().out.count("tmp-new-out/images") == 1
    other.leave(discard=True)
    assert {path.name for path in root.iterdir()} == {"run", "model", "here"}


DAMAGE = ["record", "no record", "link", "file", "images a link", "lock a link", "lock a pipe"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_left_may_be_anything(root: Path, damage: str) -> None:
    out = begun(root)
    fill(out.staging, CONTENT)
    out.leave()
    (root / "mine").mkdir()
    (root / "mine" / "file").write_text("mine")
    staging, lock = staging_folder(root / "out"), root / "tmp-lock-out"
    if damage == "record":
        (staging / "record.json").write_bytes(b"\xff{")
    elif damage == "no record":
        (staging / "record.json").unlink()
    elif damage in ("link", "file"):
        shutil.rmtree(staging)
        staging.symlink_to(root / "mine") if damage == "link" else staging.write_text("")
    elif damage == "images a link":
        shutil.rmtree(staging / "images")
        (staging / "images").symlink_to(root / "mine")
    elif damage == "lock a link":
        lock.symlink_to(root / "mine" / "file")
    else:
        os.mkfifo(lock)
    again = begun(root)
    kept = {"images/0.png": b"0"} if damage.startswith("lock") else {}
    assert content(again.staging) == kept
    again.leave(discard=True)
    assert (root / "mine" / "file").read_text() == "mine"
    assert {path.name for path in root.iterdir()} == {"run", "model", "here", "mine"}


def test_two_commands_do_not_write_one_folder(root: Path) -> None:
    out = begun(root)
    fill(out.staging, CONTENT)
    with pytest.raises(ValueError, match=rf"{root / 'out'} is in use by process {os.getpid()} .*--out"):
        begun(root)
    assert content(out.staging) == CONTENT
    out.leave(discard=True)


class Killed(BaseException):
    """A process killed at once."""


def test_killed_before_every_operation_the_old_or_the_new_output_is_there(root: Path) -> None:
    """After the next command begins, at the latest: between two renames the old output has another name."""
    step, killed = 0, True
    while killed:
        write(root / "out", str(root / "run"), {"images/0.png": b"old", "grid.png": b"old"})
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                write(root / "out", str(root / "run"), {"images/0.png": b"new", "images/1.png": b"new"}, seed=step)
                killed = False
            except Killed:
                pass
        out = begun(root, seed=step)
        old, new = {"images/0.png": b"old", "grid.png": b"old"}, {"images/0.png": b"new", "images/1.png": b"new"}
        assert content(root / "out") == (old if killed and content(root / "out") == old else new)
        out.leave(discard=True)
        assert {path.name for path in root.iterdir()} == {"run", "model", "here", "out"}
        step += 1
    assert step > 12


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die just before its `step`-th operation on files."""
    left = [step]

    def dying(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return call

    names = [(os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "unlink"), (os, "mkdir")]
    for module, name in [*names, (Path, "write_bytes")]:
        patch.setattr(module, name, dying(getattr(module, name)))


def test_the_digest_of_weights_depends_on_names_and_values() -> None:
    def digest(name: str, *tensors: torch.Tensor) -> str:
        net = nn.Module()
        for k, tensor in enumerate(tensors):
            net.register_buffer(f"{name}{k}", tensor)
        return weights_sha256(net)

    one, count = torch.tensor([1.0, -0.0]), torch.tensor(3)
    same = digest("a", one, count)
    assert same == digest("a", one.clone(), count.clone())
    others = [digest("b", one, count), digest("a", one * -1, count), digest("a", one, count + 1)]
    assert len({same, *others}) == 4
