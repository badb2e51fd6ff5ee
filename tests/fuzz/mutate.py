"""Strategies that damage valid inputs: bytes, JSON values, text, entries of a folder."""

import copy
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.boundary import OUTSIDE, Entry, Link

EDITS = ("cut", "flip", "set", "insert", "remove", "repeat", "move", "large", "append")
BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
LARGE = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

NAMES = (
    "a",
    "Ünïcode",
    "A\u0308",  # NFD
    "Ä",  # the same name in NFC
    "\x1b[31mred",
    "line\nbreak",
    "tab\t",
    "\u202eright to left",
    "\udcff\udcfe",  # no UTF-8
    " ",
    "-rf",
    "$(id)",
    "<script>",
    "`code`",
    ".hidden",
    "@eaDir",
    "__MACOSX",
    "Thumbs.db",
    "CON",
    "²",
    "all",
    "none",
    "train",
    "val",
    "x" * 250,
)
TEXTS = (
    *NAMES,
    "",
    "..",
    f"../{OUTSIDE}/file",
    "/etc/passwd",
    "a/b/c",
    "a\\b",
    "null",
    "1e400",
    "nan",
    "x" * 5000,
    "{}",
    "%s%n",
    "C:\\x",
    "\x00",
    "é" * 300,
)
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 10**5, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300)


def deep(depth: int, value: Any = 0) -> Any:
    """A list in a list in a list."""
    for _ in range(depth):
        value = [value]
    return value


def odd_values() -> SearchStrategy[Any]:
    """Values that a field hardly expects: other types, and the ends of ranges."""
    plain = (None, True, False, float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"a": {}}, deep(30))
    return st.one_of(
        st.sampled_from(NUMBERS).map(copy.copy),
        st.sampled_from(TEXTS),
        st.sampled_from(plain).map(copy.deepcopy),
        st.lists(st.sampled_from((*NUMBERS[:10], "a", None)), max_size=4),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
    )


@st.composite
def damaged_bytes(draw: DrawFn, data: bytes, most: int = 4) -> bytes:
    """The bytes after up to `most` edits, most of them near the start, where headers are."""
    edits = st.tuples(st.sampled_from(EDITS), st.integers(0, 65535), st.integers(0, 255), st.integers(0, 65535))
    for edit, where, value, other in draw(st.lists(edits, min_size=1, max_size=most)):
        at, count = len(data) * (65535 - where) ** 2 >> 32, 1 + other % 64
        match edit:
            case "cut":
                data = data[: len(data) * (65535 - where) >> 16]
            case "flip" if data:
                data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
            case "set":
                data = data[:at] + bytes([BYTES[other % 6] if value % 2 else value]) + data[at + 1 :]
            case "insert":
                data = data[:at] + bytes([value]) * count + data[at:]
            case "remove":
                data = data[:at] + data[at + count :]
            case "repeat":
                data = data[: at + count] + data[at:]
            case "move":
                data = data[:at] + data[at + count :] + data[at : at + count]
            case "large":
                number = LARGE[value % len(LARGE)].to_bytes(4, "big" if other % 2 else "little")
                data = data[:at] + number + data[at + 4 :]
            case "append":
                data += bytes([value]) * other
    return data


@st.composite
def damaged_json(draw: DrawFn, document: Any, most: int = 3) -> Any:
    """The JSON value after some edits: values replaced, keys removed, renamed and added, items repeated."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(document))
        if not places:
            return draw(odd_values())
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "add", "wrap"))):
            case "replace":
                parent[key] = draw(odd_values())
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(TEXTS))] = parent.pop(key)
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(TEXTS))] = draw(odd_values())
            case "wrap":
                parent[key] = draw(st.sampled_from(([parent[key]], {"a": parent[key]}, str(parent[key]))))
            case _ if isinstance(parent, list):
                parent += parent[: draw(st.integers(1, 3))]
    return document


def _places(value: Any) -> Any:
    """Each (parent, key) of a JSON value."""
    for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def dumped(value: Any) -> bytes:
    """JSON as other programs write it; lone surrogates are escaped."""
    return json.dumps(value).encode()


def json_bytes(document: Any) -> SearchStrategy[bytes]:
    """The text of a damaged JSON value, or a damaged text of the value."""
    text = dumped(document)
    special = (
        b"",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{}",
        b"\xef\xbb\xbf" + text,
        b"{}",
        b'{"a": 1, "a": 2}',
        b"1" * 10_000,
        text + text,
        text.replace(b'"', b"'"),
        b'{"a": NaN}',
        text[:-1] + b', "\xff": 1}',
        text.decode().encode("utf-16"),
    )
    return st.one_of(damaged_json(document).map(dumped), damaged_bytes(text), st.sampled_from(special))


@st.composite
def damaged_safetensors(draw: DrawFn, data: bytes) -> bytes:
    """A safetensors file with a damaged header, damaged tensors, or damaged as a whole."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    match draw(st.sampled_from(("header", "header", "type", "text", "length", "body", "all", "values"))):
        case "header":
            text = dumped(draw(damaged_json(header)))
        case "type":
            name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
            header[name]["dtype"] = draw(st.sampled_from(("F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "X", "F4")))
            text = dumped(header)
        case "text":
            text = draw(json_bytes(header))
        case "length":
            length = draw(st.sampled_from((0, 1, size - 1, size + 1, 10**8, 2**31, 2**63, 2**64 - 1)))
            return struct.pack("<Q", length) + data[8:]
        case "body":
            return data[: 8 + size] + draw(damaged_bytes(body, 1))
        case "values":
            number = draw(st.sampled_from((float("nan"), float("inf"), 1e30, 0.0)))
            return data[: 8 + size] + struct.pack("<f", number) * (len(body) // 4)
        case _:
            return draw(damaged_bytes(data))
    return struct.pack("<Q", len(text)) + text + body


@st.composite
def damaged_png(draw: DrawFn, data: bytes) -> bytes:
    """A PNG whose chunks are edited, with right checksums, so that what is in them is read."""
    chunks, at = [], 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    bomb = zlib.compress(bytes(3 << 20))
    added = (
        (b"tEXt", b"Comment\0" + b"x" * 100),
        (b"zTXt", b"Comment\0\0" + bomb),
        (b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        (b"iCCP", b"profile\0\0" + bomb),
        (b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x09\0\0\0\0\0\0"),
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
        (b"acTL", struct.pack(">II", 2**31, 0)),
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 9, 0, 0, 1, 1, 7, 7)),
        (b"PLTE", b"\1\2"),
        (b"tRNS", b"\0"),
        (b"pHYs", b""),
        (b"gAMA", b"\0"),
        (b"IDAT", b""),
        (b"ABCD", b"critical"),
        (b"IEND", b""),
    )
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(chunks) - 1))
        name, content = chunks[place]
        match draw(st.sampled_from(("header", "add", "add", "remove", "repeat", "content", "empty"))):
            case "header":
                width, height = (draw(st.sampled_from((0, 1, 8, 9, 1000, 30_000, 2**31 - 1, 2**32 - 1))) for _ in "wh")
                rest = bytes(draw(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 16, 255))) for _ in range(5))
                chunks[0] = (b"IHDR", struct.pack(">II", width, height) + rest)
            case "add":
                chunks.insert(place + 1, draw(st.sampled_from(added)))
            case "remove" if len(chunks) > 1:
                del chunks[place]
            case "repeat":
                chunks.insert(place, (name, content))
            case "content":
                chunks[place] = (name, draw(damaged_bytes(content, 1)))
            case _:
                chunks[place] = (name, b"")
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def odd_entries() -> SearchStrategy[bytes | Link | Entry]:
    """What may be in the place of a file."""
    links = (f"../{OUTSIDE}/file", "/dev/zero", "/etc/passwd", "missing", ".", "..")
    texts = (b"", b"\0", b"PK\3\4", b"\x80\x02", b"not what is expected\n", bytes(100), b"version https://git-lfs\n")
    return st.one_of(st.sampled_from((*texts, *Entry)), st.sampled_from(links).map(Link))


@st.composite
def damaged_tree(
    draw: DrawFn, tree: Mapping[str, bytes], damage: Mapping[str, SearchStrategy[bytes]], share: int = 3
) -> dict[str, Any]:
    """A folder in which one file or more are damaged, as `damage` does for its name, replaced, removed or added."""
    result: dict[str, Any] = dict(tree)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(tree)))
        match draw(st.sampled_from((*["damage"] * share, "replace", "remove", "add"))):
            case "damage":
                result[name] = draw(damage[name])
            case "replace":
                result[name] = draw(odd_entries())
            case "remove":
                result.pop(name, None)
            case "add":
                result[draw(st.sampled_from(NAMES))] = draw(odd_entries())
    return result


def one_of(values: Sequence[Any]) -> SearchStrategy[Any]:
    """One of the values, which may be mutable."""
    return st.sampled_from(values).map(copy.deepcopy)
