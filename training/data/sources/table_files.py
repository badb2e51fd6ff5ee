"""Files of tables: parquet and arrow, opened without reading data, then read by column and row group."""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage.read import open_regular, require_regular
from training.units import show_size

MAX_GROWTH = 1 << 30
"""bytes that a row group may take in memory beyond the size that its file states"""
MAX_RATIO = 100
"""how many times smaller a column of more than `MAX_GROWTH` bytes may be in its file; files of images hardly shrink"""
BATCH_BYTES = 256 << 20
BATCH_ROWS = 10_000


class Parquet:
    """A parquet file, which is open only while it is read."""

    def __init__(self, file: Path):
        import pyarrow.parquet  # type: ignore[import-untyped]

        self.file = file
        with pyarrow.parquet.ParquetFile(file) as table:
            self.schema, self.metadata = table.schema_arrow, table.metadata
        self.groups = [self.metadata.row_group(number) for number in range(self.metadata.num_row_groups)]
        self.sizes = [group.num_rows for group in self.groups]
        """rows of each row group"""

    def bytes(self, column: str, group: int) -> int:
        """Bytes of a column of a row group in memory."""
        return sum(part.total_uncompressed_size for part in self._parts(column, group))

    def _parts(self, column: str, group: int) -> list[Any]:
        """The metadata of the parts in which a column of a row group is stored."""
        chunks = self.groups[group]
        parts = [chunks.column(number) for number in range(chunks.num_columns)]
        return [part for part in parts if part.path_in_schema.partition(".")[0] == column]

    def batches(self, name: str, group: int) -> Iterator[Any]:
        """A column of a row group, in arrays of arrow of about `BATCH_BYTES` bytes, or of one row.

        The size that the file states is not that of the cells in memory: equal ones are stored once, in a dictionary.
        Raises ValueError for a damaged file, and for a column that shrinks too much in its file.
        """
        import pyarrow.parquet

        stated, parts = self.bytes(name, group), self._parts(name, group)
        stored = sum(part.total_compressed_size for part in parts)
        if stated > max(MAX_GROWTH, MAX_RATIO * min(stored, self.file.stat().st_size)):
            raise ValueError(
                f"{self.file}: row group {group} of column {name!r} has {show_size(stored)} and states"
                f" {show_size(stated)} uncompressed, more than {MAX_RATIO} times as many; write the table again"
            )
        cell = max([stated // max(1, self.sizes[group]), *(dictionary_bytes(self.file, part) for part in parts)])
        few = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, cell)))
        with (
            readable(self.file),
            pyarrow.parquet.ParquetFile(self.file, metadata=self.metadata, buffer_size=1 << 20) as table,
        ):
            for batch in table.iter_batches(few, [group], [name]):
                yield batch.column(name)


class Arrow:
    """An arrow file of either format, memory-mapped; its record batches are its row groups."""

    def __init__(self, file: Path):
        import pyarrow

        self.file = file
        mapped = pyarrow.memory_map(str(file))
        if stated_bytes(mapped) > MAX_GROWTH:
            raise ValueError(too_large(file))
        before, self._batches = pyarrow.total_allocated_bytes(), []
        try:
            reader = pyarrow.ipc.open_stream(mapped)
            batches = iter(reader)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            reader = pyarrow.ipc.open_file(mapped)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            self._batches.append(batch)
            if pyarrow.total_allocated_bytes() - before > MAX_GROWTH:  # it states less
                raise ValueError(too_large(file))
        self.schema = reader.schema
        self.sizes = [batch.num_rows for batch in self._batches]

    def bytes(self, column: str, group: int) -> int:
        """Bytes of a column of a row group in memory."""
        return self._batches[group].column(column).nbytes

    def batches(self, name: str, group: int) -> Iterator[Any]:
        """A column of a record batch: one array of arrow."""
        yield self._batches[group].column(name)


Table = Parquet | Arrow


def too_large(file: Path) -> str:
    """The message about an arrow file that takes too much memory."""
    return (
        f"{file} is compressed and takes more than {show_size(MAX_GROWTH)} in memory; write it again without"
        " compression, or as parquet"
    )


def stated_bytes(mapped: Any) -> int:
    """The size that an arrow file states for its compressed buffers in memory, of which none is read.

    Each compressed buffer starts with its size. Where buffers are is stated in the header of a message, in the
    encoding of FlatBuffers (Message.fbs of Arrow, format version 1.5).
    """
    from pyarrow import ipc

    if mapped.read(8)[:6] != b"ARROW1":  # else it is a stream between two marks
        mapped.seek(0)
    total = 0
    with suppress(EOFError):
        while True:
            message = ipc.read_message(mapped)
            if message.type not in ("record batch", "dictionary"):
                continue
            header, body = Header(message.metadata), memoryview(message.body)
            batch = header.table(header.root, 2)
            batch = header.table(batch, 1) if message.type == "dictionary" else batch
            if not header.field(batch, 3):  # no compression
                continue
            buffers = header.table(batch, 2)
            for number in range(header.number("<I", buffers)):
                start, size = (header.number("<q", buffers + 4 + 16 * number + 8 * half) for half in range(2))
                total += max(0, struct.unpack_from("<q", body, start)[0]) if size else 0
    mapped.seek(0)
    return total


class Header:
    """The metadata of a message of arrow. Raises struct.error for positions outside."""

    def __init__(self, data: Any):
        self._data = memoryview(data)
        self.root = self.number("<I", 0)

    def number(self, kind: str, place: int) -> int:
        """The number of this type at a place."""
        return int(struct.unpack_from(kind, self._data, place)[0])

    def field(self, table: int, number: int) -> int:
        """The place of a field of a table; 0 if it is left out."""
        layout = table - self.number("<i", table)
        entry = 4 + 2 * number
        offset = self.number("<H", layout + entry) if entry < self.number("<H", layout) else 0
        return offset and table + offset

    def table(self, table: int, number: int) -> int:
        """The place of the table or the list in a field of a table."""
        place = self.field(table, number)
        return place + self.number("<I", place)


def dictionary_bytes(file: Path, part: Any) -> int:
    """An upper limit for the size of a cell that parquet stores once for several rows; `part` is its metadata.

    It is the uncompressed size of the dictionary: the second field of the header of its page, which is a struct of
    Thrift's compact protocol, both fields 32-bit integers.
    """
    if part.physical_type != "BYTE_ARRAY" or not part.has_dictionary_page:
        return 0
    with open_regular(file) as opened:
        opened.seek(part.dictionary_page_offset or 0)
        header = opened.read(32)
    numbers = re.match(rb"\x15[\x80-\xff]*[\x00-\x7f]\x15([\x80-\xff]*[\x00-\x7f])", header)
    if numbers is None:
        return part.total_uncompressed_size
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(numbers[1])) // 2  # zigzag


def whole_column(table: Table, name: str) -> Iterator[Any]:
    """The values of a column, row group by row group."""
    for group in range(len(table.sizes)):
        for array in table.batches(name, group):
            with readable(table.file):
                values = array.to_pylist()
            yield from values


def held_column(table: Table, name: str, group: int) -> list[Any]:
    """A column of a row group, as arrays of arrow. Raises ValueError if it takes far more memory than is stated."""
    arrays, size, limit = [], 0, table.bytes(name, group) + MAX_GROWTH
    for array in table.batches(name, group):
        arrays.append(array)
        size += array.nbytes
        if size > limit:
            raise ValueError(
                f"row group {group} of {table.file} takes more than {show_size(limit)} in memory; write the table again"
                " with smaller row groups, or set data.stream to false"
            )
    return arrays


def open_table(file: Path) -> Table:
    """Opens a table. Raises ValueError for a file of another kind, a truncated one, and two columns of one name."""
    with readable(file):
        require_regular(file)
        table = Parquet(file) if file.suffix.lower() == ".parquet" else Arrow(file)
    if twice := [name for name, count in Counter(table.schema.names).items() if count > 1]:
        raise ValueError(f"{file} has several columns {twice[0]!r}; write it again with one of each name")
    return table


def features_of(table: Table) -> dict[str, Any]:
    """The types of the columns as `datasets` has them, by name. Raises ValueError if they cannot be described."""
    from datasets import Features

    try:
        return Features.from_arrow_schema(table.schema)
    except Exception as error:  # the metadata that `datasets` stores may hold anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{table.file} has columns that cannot be described ({reason}); write it again") from error


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns errors of arrow, wrong positions, and texts that are not UTF-8, into a ValueError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, struct.error) as error:
        kind = file.suffix.lower().removeprefix(".")
        raise ValueError(f"{file} is not a readable {kind} file ({first_line(error)}); write it again") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
