"""Parquet files with a picture and a caption a row, as Hugging Face data sets have them."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.data.formats.caption import pair
from mmjax.data.formats.files import damaged, label, listed, split_of
from mmjax.data.record import Item, Record
from mmjax.error import UserError

CAPTIONS = ("caption", "text", "label_text", "answer", "description", "alt_text", "report")
ROWS = 64  # decoded at a time
DAMAGE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for damaged files
# Hugging Face's names of the files of one split.
_SHARD = re.compile(r"(train|validation|test)-\d+-of-\d+")


class Columns(NamedTuple):
    """What is read of a file.

    image: path of the bytes: "image.bytes" of a struct, "image" alone.
    """

    image: str
    caption: str


def items(path: Path) -> Iterator[Item]:
    """The rows of a file, or of every *.parquet below a folder.

    The picture is a struct {bytes, path} or bytes; the caption, a column named as in CAPTIONS,
    text or a list of texts, each of which makes a record. Files named as train-00000-of-00002, or
    in a first-level folder train, validation or test, belong to that split.

    Raises:
        UserError: if there are no files, or one whose columns are not clearly these.
    """
    root, files = listed(path, (".parquet",))
    columns = {file: _columns(file) for file in files}
    return (item for file in files for item in _rows(file, root, columns[file]))


def _columns(file: Path) -> Columns | None:
    """The two columns; None if the file is damaged.

    Raises:
        UserError: if they are absent or ambiguous.
    """
    try:
        schema = pq.read_schema(file)
    except DAMAGE:
        return None  # said when its turn comes
    images = [f for f in schema if _is_picture(f.type)]
    captions = [f for f in schema if f.name in CAPTIONS and _is_text(f.type)]
    for fields, what, wanted in (
        (images, "pictures", "a struct {bytes, path} or bytes"),
        (captions, "captions", f"text called {', '.join(CAPTIONS)}"),
    ):
        if len(fields) != 1:
            names = ", ".join(f.name for f in fields or schema)
            wrong = "several columns may hold" if fields else "no column holds"
            remedy = "drop or rename all but one" if fields else f"name one that is {wanted}"
            raise UserError(f"{file}: {wrong} the {what} ({names}); {remedy}")
    name = images[0].name
    return Columns(f"{name}.bytes" if pa.types.is_struct(images[0].type) else name,
                   captions[0].name)  # fmt: skip


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _rows(file: Path, root: Path, columns: Columns | None) -> Iterator[Item]:
    """Captions are read row by row, pictures only from the row group an item is asked of."""
    name = label(file, root)
    shard = _SHARD.match(file.name)
    split = split_of(file, root) or (shard.group(1) if shard else None)
    if columns is None:
        yield damaged(name, "not a Parquet file, or damaged at its end")
        return
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            first = 0
            for group in range(table.num_row_groups):
                yield from _group(table, group, first, columns, name, split)
                first += table.metadata.row_group(group).num_rows
    except DAMAGE as error:
        yield damaged(name, f"cannot be read: {_line(error)}")


def _group(
    table: pq.ParquetFile, group: int, first: int, columns: Columns, name: str, split: str | None
) -> Iterator[Item]:
    """One row group, whose first row is the file's row `first`; damage ends it, not the file."""
    pictures = Pictures(table, group, columns.image)
    row = 0
    try:
        for batch in table.iter_batches(ROWS, row_groups=[group], columns=[columns.caption]):
            for found in batch.column(0).to_pylist():
                captions = (found or [None]) if isinstance(found, list) else [found]
                for number, caption in enumerate(captions, 1):
                    source = f"{name}:{first + row}" + (f":{number}" if number > 1 else "")
                    yield Item(source, partial(_record, source, caption, pictures, row), split)
                row += 1
    except DAMAGE as error:
        reason = f"row group cannot be read from here on: {_line(error)}"
        yield damaged(f"{name}:{first + row}", reason)


def _record(id: str, caption: str | None, pictures: "Pictures", row: int) -> Record:
    image = pictures(row)
    if image is None:
        raise ValueError("no picture")
    return pair(id, caption, image)


class Pictures:
    """A row group's pictures, asked for in the order of rows; each may be skipped."""

    def __init__(self, table: pq.ParquetFile, group: int, column: str):
        self._batches = table.iter_batches(ROWS, row_groups=[group], columns=[column])
        self._batch: list = []
        self._first = 0

    def __call__(self, row: int) -> bytes | None:
        """The bytes of a row, None where there are none.

        Raises:
            ValueError: if they cannot be read.
        """
        try:
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = [_bytes(value) for value in next(self._batches).column(0)]
        except (*DAMAGE, StopIteration) as error:
            raise ValueError(f"pictures cannot be read: {_line(error)}") from error
        return self._batch[row - self._first]


def _line(error: Exception) -> str:
    return str(error).split("\n")[0] or "damage before this row"


def _bytes(value: pa.Scalar) -> bytes | None:
    found = value.as_py()
    return found["bytes"] if isinstance(found, dict) else found
