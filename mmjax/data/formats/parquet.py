"""Parquet files with images and a caption a row, as Hugging Face data sets have them."""

import itertools
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.batch import Image, Text
from mmjax.data.formats import pages
from mmjax.data.formats.caption import worded
from mmjax.data.formats.files import damaged, label, listed, rest, split_of
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record
from mmjax.data.source import bounded
from mmjax.error import UserError

CAPTIONS = ("caption", "text", "label_text", "answer", "description", "alt_text", "report")
ROWS = 64  # whose captions are decoded at a time
PAGE = 1 << 30  # most bytes of a page unpacked, which is held as a whole
DAMAGE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for damaged files
# Hugging Face's names of the files of one split.
_SHARD = re.compile(r"(train|validation|test)-\d+-of-\d+")
LEAST = 64  # bytes of an image in a column of one width; those of hashes and ids have fewer
IMAGES = (
    "a struct {bytes, path}, binary, large_binary, binary_view or fixed_size_binary, dictionaries "
    "or lists of these"
)
TEXTS = (
    "string, large_string, string_view, dictionaries or lists of these, called "
    f"{', '.join(CAPTIONS)}"
)


class Columns(NamedTuple):
    """What is read of a file.

    image: path of the bytes: "image.bytes" of a struct, "image" alone or of a list.
    """

    image: str
    caption: str


def items(path: Path, follow_links: bool = False) -> Iterator[Item]:
    """The rows of a file, or of every *.parquet below a folder.

    The image is of one of the types IMAGES, a list of several; the caption, a column named as in
    CAPTIONS, of one of TEXTS; each text of a list makes a record. Files named as
    train-00000-of-00002, or in a first-level folder train, validation or test, belong to that
    split. What else lies in the folder comes last.

    Raises:
        UserError: if there are no files, or one whose columns are not clearly these.
    """
    tree, files = listed(path, (".parquet",), follow_links)
    columns = {file: _columns(file) for file in files}
    found = (item for file in files for item in _rows(file, tree.root, columns[file]))
    return itertools.chain(found, rest(tree, {*files}))


def _columns(file: Path) -> Columns | str:
    """The two columns; if the file is damaged, why.

    Raises:
        UserError: if they are absent or ambiguous.
    """
    try:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
    except (PermissionError, FileNotFoundError) as error:
        return f"cannot be read: {_line(error)}"  # said when its turn comes
    except DAMAGE:
        return "not a Parquet file, or damaged at its end"
    images = [f for f in schema if _is_image(f.type)]
    captions = [f for f in schema if f.name in CAPTIONS and _is_text(f.type)]
    if len(captions) > 1:
        captions = [f for f in captions if not _is_empty(metadata, f.name)]
    for fields, what, wanted in (
        (images, "images", f"{IMAGES}"), (captions, "captions", TEXTS)
    ):  # fmt: skip
        if len(fields) != 1:
            names = ", ".join(f"{f.name}: {f.type}" for f in fields or schema)
            wrong = "several columns may hold" if fields else "no column holds"
            remedy = "drop or rename all but one" if fields else f"make one that is {wanted}"
            raise UserError(f"{file}: {wrong} the {what} ({names}); {remedy}")
    name = images[0].name
    return Columns(f"{name}.bytes" if pa.types.is_struct(images[0].type) else name,
                   captions[0].name)  # fmt: skip


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary, of runs or of an extension."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _is_list(kind: pa.DataType) -> bool:
    tests = ("list", "large_list", "list_view", "large_list_view", "fixed_size_list")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def _is_image(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if _is_list(kind):
        return _is_image(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if pa.types.is_fixed_size_binary(kind):
        return kind.byte_width >= LEAST
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if _is_list(kind):
        return _is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_empty(metadata: pq.FileMetaData, name: str) -> bool:
    """Whether a column is null in every row, so far as the file tells."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] == name:
                known = column.statistics
                if known is None or not known.has_null_count or known.num_values:
                    return False
    return True


def _rows(file: Path, root: Path, columns: Columns | str) -> Iterator[Item]:
    """Captions are read row by row, pictures only from the row group an item is asked of."""
    name = label(file, root)
    shard = _SHARD.match(file.name)
    split = split_of(file, root) or (shard.group(1) if shard else None)
    if isinstance(columns, str):
        yield damaged(name, columns)
        return
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            first = 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                if (size := _largest_page(file, table, group, columns)) > PAGE:
                    why = f"a page of {size:,} bytes, more than {PAGE:,}"
                    reason = f"row group of {count:,} rows with {why}; write it in smaller pages"
                    yield damaged(f"{name}:{first}", reason)
                else:
                    yield from _group(table, group, first, columns, name, split)
                first += count
    except DAMAGE as error:
        yield damaged(name, f"cannot be read: {_line(error)}")


def _largest_page(file: Path, table: pq.ParquetFile, group: int, columns: Columns) -> int:
    """Bytes of the largest page that would be unpacked; 0 where that is not told."""
    wanted = {columns.image.split(".")[0], columns.caption}
    try:
        return pages.largest(file, table.metadata, group, wanted)
    except (ValueError, OSError):
        return 0  # pyarrow says what is wrong


def _group(
    table: pq.ParquetFile, group: int, first: int, columns: Columns, name: str, split: str | None
) -> Iterator[Item]:
    """One row group, whose first row is the file's row `first`; damage ends it, not the file."""
    images = Images(table, group, columns.image)
    row = 0
    try:
        for batch in table.iter_batches(ROWS, row_groups=[group], columns=[columns.caption]):
            for found in batch.column(0).to_pylist():
                captions = (found or [None]) if isinstance(found, list) else [found]
                for number, caption in enumerate(captions, 1):
                    source = f"{name}:{first + row}" + (f":{number}" if number > 1 else "")
                    yield Item(source, partial(_record, source, caption, images, row), split)
                row += 1
    except DAMAGE as error:
        reason = f"row group cannot be read from here on: {_line(error)}"
        yield damaged(f"{name}:{first + row}", reason)


def _record(id: str, caption: str | None, among: "Images", row: int) -> Record:
    found, text = among(row), Text(worded(caption))
    if not found:
        raise ValueError("no image")
    if None in found:
        raise ValueError(f"image {found.index(None) + 1} of {len(found)} has no bytes")
    images = (Image(checked(bounded(data, "image"))) for data in found)
    return Record(id, (text, *images))


class Images:
    """A row group's images, asked for in the order of rows; each may be skipped."""

    def __init__(self, table: pq.ParquetFile, group: int, column: str):
        self._batches = table.iter_batches(1, row_groups=[group], columns=[column])
        self._batch: list = []
        self._first = 0

    def __call__(self, row: int) -> list:
        """The bytes of a row's images, None where there are none.

        Raises:
            ValueError: if they cannot be read.
        """
        try:
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = [_bytes(value) for value in next(self._batches).column(0)]
        except (*DAMAGE, StopIteration) as error:
            raise ValueError(f"images cannot be read: {_line(error)}") from error
        return self._batch[row - self._first]


def _line(error: Exception) -> str:
    return str(error).split("\n")[0] or "damage before this row"


def _bytes(value: pa.Scalar) -> list:
    found = value.as_py()
    several = found if isinstance(found, list) else [] if found is None else [found]
    return [one["bytes"] if isinstance(one, dict) else one for one in several]
