"""Label files: JSON lines with the label of each image, like the metadata.jsonl of the Hugging Face hub."""

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath


def read_label_file(path: Path, names: Collection[str]) -> dict[str, int | str]:
    """The label of each image in the file by the image's name: class names, or class numbers.

    `names` are the existing images, as paths below their folder. Each line is an object with `file_name` and `label`;
    other keys and empty lines are ignored. Raises ValueError with the number of the line that has another form, names
    no existing image, leaves the folder, or repeats an image; and if class names and numbers are mixed.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.label_file {str(path)!r} cannot be read ({error})") from error
    known = set(names)
    labels: dict[str, int | str] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, label = parse_line(line)
            if name not in known:
                raise ValueError(f"there is no image {name!r} in the folder")
            if name in labels:
                raise ValueError(f"{name!r} has a label already, in line {line_of[name]}")
            if labels and type(label) is not type(next(iter(labels.values()))):
                raise ValueError(f"label {label!r} is not of the type of those before; give names or numbers, not both")
        except ValueError as error:
            raise ValueError(f"data.label_file {str(path)!r}, line {number}: {error}") from error
        labels[name], line_of[name] = label, number
    if not labels:
        raise ValueError(f"data.label_file {str(path)!r} holds no labels")
    return labels


def parse_line(line: str) -> tuple[str, int | str]:
    """Name and label of one line. Raises ValueError if it has another form."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not (isinstance(record, dict) and isinstance(record.get("file_name"), str) and "label" in record):
        raise ValueError('not of the form {"file_name": "a/b.png", "label": "cat"}')
    label = record["label"]
    if not (isinstance(label, str) or (type(label) is int and label >= 0)):
        raise ValueError(f"label {label!r} is neither a name nor a whole number of at least 0")
    name = PurePosixPath(record["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{str(name)!r} leaves the folder; give a path below it")
    return str(name), label
