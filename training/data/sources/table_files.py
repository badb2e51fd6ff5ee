"""Files of tables: parquet and arrow, opened without reading data, then read by column and row group."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.read import require_regular


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
        chunks = self.groups[group]
        parts = [chunks.column(number) for number in range(chunks.num_columns)]
        return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column)

    def column(self, name: str, group: int | None = None) -> Any:
        """A column of one row group, or of all: a chunked array of arrow."""
        import pyarrow.parquet

        with readable(self.file), pyarrow.parquet.ParquetFile(self.file, metadata=self.metadata) as table:
            read = table.read([name]) if group is None else table.read_row_group(group, [name])
        return read.column(name)


class Arrow:
    """An arrow file of either format, memory-mapped; its record batches are its row groups."""

    def __init__(self, file: Path):
        import pyarrow

        self.file = file
        mapped = pyarrow.memory_map(str(file))
        try:
            reader = pyarrow.ipc.open_stream(mapped)
            self.batches = list(reader)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            reader = pyarrow.ipc.open_file(mapped)
            self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.schema = reader.schema
        self.sizes = [batch.num_rows for batch in self.batches]

    def bytes(self, column: str, group: int) -> int:
        """Bytes of a column of a row group in memory."""
        return self.batches[group].column(column).nbytes

    def column(self, name: str, group: int | None = None) -> Any:
        """A column of one row group, or of all: a chunked array of arrow."""
        import pyarrow

        batches = self.batches if group is None else [self.batches[group]]
        return pyarrow.chunked_array([batch.column(name) for batch in batches], self.schema.field(name).type)


Table = Parquet | Arrow


def open_table(file: Path) -> Table:
    """Opens a table. Raises ValueError for a file of another kind, or a truncated one."""
    with readable(file):
        require_regular(file)
        return Parquet(file) if file.suffix.lower() == ".parquet" else Arrow(file)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns errors of arrow, and texts that are not UTF-8, into a ValueError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = file.suffix.lower().removeprefix(".")
        raise ValueError(f"{file} is not a readable {kind} file ({first_line(error)}); write it again") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
