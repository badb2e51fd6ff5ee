"""Lists the files below a folder by their kind, and counts those that are left out."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pictures.formats import FORMATS
from storage.read import is_regular
from storage.show import printable

KINDS = {
    "images": tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes),
    "arrays": (".npy",),
    "tables": (".parquet", ".arrow"),
}
"""suffixes of the files of each kind, in lower case"""
KIND_OF = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
MAX_SHOWN = 10
"""suffixes that a note names"""
SYSTEM = {
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx", "$recycle.bin", "lost+found"),
    "system volume information",
}
"""folders of storage devices and operating systems, in lower case"""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "dataset.json")
"""files that have the labels of images below their folder: of the Hugging Face hub, and of EDM"""


@dataclass
class Listing:
    """The files of a source by kind, each in the order of their paths, and the number of others by their suffix."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    metadata: list[Path] = field(default_factory=list)
    """files that may have the labels of the images or arrays, with a name in `METADATA`"""

    @classmethod
    def of(cls, folder: Path, paths: Iterable[Path] | None = None, label_file: Path | None = None) -> "Listing":
        """Lists `paths`, folders among them with all they hold; by default `folder`, which also defines the order.

        Metadata is found in all folders from `folder` to the files. `label_file` is not listed, wherever it is.

        Links are followed, and each folder is visited once. Hidden files and folders, and those of `SYSTEM`, are left
        out. A file without a suffix is an image if it is one, and if there are no arrays or tables. Raises ValueError
        for a folder that cannot be read.
        """
        listing, bare = cls(), []
        found = dict.fromkeys(walk([folder] if paths is None else paths, listing.left_out))
        for path in [] if paths is None else list(dict.fromkeys(parent for file in found for parent in file.parents)):
            if path.is_relative_to(folder):
                found |= dict.fromkeys(path / name for name in METADATA if is_regular(path / name))
        labels = None if label_file is None else os.path.realpath(label_file)
        for path in found:
            if label_file is not None and path.name == label_file.name and os.path.realpath(path) == labels:
                continue
            suffix = path.suffix.lower()
            if path.name.casefold() in METADATA:
                listing.metadata.append(path)
            elif kind := KIND_OF.get(suffix):
                listing.files.setdefault(kind, []).append(path)
            elif suffix:
                listing.left_out[suffix] += 1
            else:
                bare.append(path)
        images = [] if listing.files.keys() - {"images"} else [path for path in bare if is_picture(path)]
        listing.left_out["without a suffix"] += len(bare) - len(images)
        if images:
            listing.files.setdefault("images", []).extend(images)
        if not listing.files.keys() & {"images", "arrays"}:  # then they are like all others
            for path in listing.metadata:
                if path.suffix.lower() in KINDS["tables"]:
                    listing.files.setdefault("tables", []).append(path)
                else:
                    listing.left_out[path.suffix.lower()] += 1
            listing.metadata.clear()
        listing.metadata.sort()
        for kind in [kind for kind in KINDS if kind in listing.files]:
            files = listing.files.pop(kind)
            listing.files[kind] = sorted(files, key=lambda file: file.relative_to(folder).as_posix())
        return listing

    def __str__(self) -> str:
        """What is left out, in one line; empty if nothing is."""
        counts = (+self.left_out).most_common()
        texts = [f"{count:,} {printable(suffix[:20])}" for suffix, count in counts[:MAX_SHOWN]]
        if rest := sum(count for _, count in counts[MAX_SHOWN:]):
            texts.append(f"{rest:,} more")
        return f"left out: {', '.join(texts)}" if texts else ""


def walk(paths: Iterable[Path], left_out: Counter[str]) -> Iterator[Path]:
    """The files among `paths` and in the folders among them; counts what is left out.

    Raises ValueError for a folder that cannot be read.
    """
    seen = set()
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for root, folders, files in walk_folders(path):
            real = os.path.realpath(root)
            if real in seen:
                left_out["repeated folders"] += 1
                folders.clear()
                continue
            seen.add(real)
            left_out["empty folders"] += not (folders or files)
            left_out["hidden"] += sum(name.startswith(".") for name in files)
            left_out["hidden folders"] += sum(name.startswith(".") for name in folders)
            left_out["system folders"] += sum(name.casefold() in SYSTEM for name in folders)
            folders[:] = [name for name in folders if not name.startswith(".") and name.casefold() not in SYSTEM]
            yield from (Path(root, name) for name in files if not name.startswith("."))


def walk_folders(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through links. Raises ValueError for a folder that cannot be read, and for too deep nesting."""
    try:
        yield from os.walk(path, onerror=refuse, followlinks=True)
    except RecursionError:
        raise ValueError(f"data.source: folders in {str(path)!r} are nested too deeply; move them elsewhere") from None


def refuse(error: OSError) -> None:
    """Raises ValueError for a folder that cannot be read, whose images would be missing."""
    raise ValueError(
        f"data.source: the folder {error.filename!r} cannot be read ({error.strerror}); make it readable, or move it"
        " elsewhere"
    ) from error


def is_picture(path: Path) -> bool:
    """Whether a file starts like a picture. Raises PermissionError if it may not be read."""
    from pictures.decode import open_image

    try:
        with open_image(path):
            return True
    except PermissionError:
        raise
    except Exception:  # as in decoding, an error of any type
        return False
