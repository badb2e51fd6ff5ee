"""Every file of the newest checkpoint, damaged in every way: reported, and the previous checkpoint is used."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.torture.runs import Run, require


def flip_bit(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(1, path.stat().st_size)])


def empty(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, dice: random.Random) -> None:
    path.unlink()


def add_pickle(path: Path, dice: random.Random) -> None:
    path.with_name("optimizer.bin").write_bytes(b"cos\nsystem\n(S'echo planted code was run'\ntR.")


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "one bit flipped in": flip_bit,
    "truncated": truncate,
    "emptied": empty,
    "removed": remove,
}


def damage_all(folder: Path, quiet: Run, dice: random.Random, most: int | None = None) -> int:
    """Damages the newest checkpoint of a run in every way (at most `most` of them), one at a time; returns the count.

    Each time the command must name the file, resume from the previous checkpoint, and end with the bits of `quiet`.
    Raises Broken if not.
    """
    half = replace(quiet, folder=folder / "half", updates=quiet.updates // 2)
    half.finish()
    newest, before = sorted(half.checkpoints.iterdir(), reverse=True)[:2]
    cases = [(name, file.name, way) for name, way in WAYS.items() for file in sorted(newest.iterdir())]
    cases.append(("a pickle planted beside", "state.json", add_pickle))
    for number, (name, file, way) in enumerate(cases if most is None else dice.sample(cases, most)):
        run = replace(quiet, folder=folder / f"damaged-{number}")
        shutil.copytree(half.folder, run.folder)
        way(run.checkpoints / newest.name / file, dice)
        output = run.finish()
        what = f"{name} {file}: {output[-2000:]}"
        named = "optimizer.bin" if way is add_pickle else file
        require(f"checkpoint {newest.name} is damaged: {named}" in output, f"not named: {what}")
        require(f"from {int(before.name):,} images" in output, f"the previous checkpoint was not used: {what}")
        require("planted code was run" not in output, what)
        run.check_same(quiet)
        shutil.rmtree(run.folder)
    return len(cases) if most is None else most
