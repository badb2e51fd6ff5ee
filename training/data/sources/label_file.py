"""Labels from a file of JSON lines, as the Hugging Face hub has them beside images (metadata.jsonl)."""

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath


def read_label_file(path: Path, names: Collection[str]) -> dict[str, int | str]:
    """The label of each image that the file speaks of, by the image's name: class names, or class numbers.

    `names` are the images there are, as paths below their folder. Each line is an object with `file_name` and `label`;
    what else it has is ignored, and so are empty lines. Raises ValueError with the number of the line that is not
    like that, names no image, leaves the folder, or says the same twice; and if names and numbers are mixed.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.label_file {str(path)!r} cannot be read ({error})") from error
    known = set(names)
    labels: dict[str, int | str] = {}
    said_in: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, label = parse_line(line)
            if name not in known:
                raise ValueError(f"there is no image {name!r} in the folder")
            if name in labels:
                raise ValueError(f"{name!r} has a label already, in line {said_in[name]}")
            if labels and type(label) is not type(next(iter(labels.values()))):
                raise ValueError(
                    f"label {label!r} is of another kind than those before; give names or numbers, not both"
                )
        except ValueError as error:
            raise ValueError(f"data.label_file {str(path)!r}, line {number}: {error}") from error
        labels[name], said_in[name] = label, number
    if not labels:
        raise ValueError(f"data.label_file {str(path)!r} holds no labels")
    return labels


def parse_line(line: str) -> tuple[str, int | str]:
    """Name and label of one line. Raises ValueError that says what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from error
    if not (isinstance(record, dict) and isinstance(record.get("file_name"), str) and "label" in record):
        raise ValueError('not of the form {"file_name": "a/b.png", "label": "cat"}')
    label = record["label"]
    if not (isinstance(label, str) or (type(label) is int and label >= 0)):
        raise ValueError(f"label {label!r} is neither a name nor a number from 0 on")
    name = PurePosixPath(record["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{str(name)!r} leaves the folder; give a path below it")
    return str(name), label
