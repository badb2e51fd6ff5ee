"""The files of tables: parquet and arrow, opened without being read, then read column by column, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Parquet:
    """A parquet file, which is open only while it is read; its blocks are its row groups."""

    def __init__(self, file: Path):
        import pyarrow.parquet  # type: ignore[import-untyped]

        self.file = file
        with pyarrow.parquet.ParquetFile(file) as table:
            self.schema, self.metadata = table.schema_arrow, table.metadata
        self.groups = [self.metadata.row_group(block) for block in range(self.metadata.num_row_groups)]
        self.sizes = [group.num_rows for group in self.groups]

    def bytes(self, column: str, block: int) -> int:
        """What a column of a block takes in memory."""
        group = self.groups[block]
        parts = [group.column(number) for number in range(group.num_columns)]
        return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column)

    def column(self, name: str, block: int | None = None) -> Any:
        """A column of one block, or of all: a chunked array of arrow."""
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self.file, metadata=self.metadata) as table:
            read = table.read([name]) if block is None else table.read_row_group(block, [name])
        return read.column(name)


class Arrow:
    """An arrow file of either format, mapped into memory; its blocks are its record batches."""

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
            self.batches = [reader.get_batch(block) for block in range(reader.num_record_batches)]
        self.schema = reader.schema
        self.sizes = [batch.num_rows for batch in self.batches]

    def bytes(self, column: str, block: int) -> int:
        """What a column of a block takes in memory."""
        return self.batches[block].column(column).nbytes

    def column(self, name: str, block: int | None = None) -> Any:
        """A column of one block, or of all: a chunked array of arrow."""
        import pyarrow

        batches = self.batches if block is None else [self.batches[block]]
        return pyarrow.chunked_array([batch.column(name) for batch in batches], self.schema.field(name).type)


Table = Parquet | Arrow


def open_table(file: Path) -> Table:
    """Raises ValueError if it is no such file, or cut short."""
    with readable(file):
        return Parquet(file) if file.suffix.lower() == ".parquet" else Arrow(file)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Errors of arrow as a ValueError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        kind = file.suffix.lower().removeprefix(".")
        raise ValueError(f"{file} is not a readable {kind} file ({first_line(error)}); write it again") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
