"""How large the pages of a Parquet file say they are, which no reader tells before it unpacks them.

Each begins with a header in Thrift's compact protocol, whose second and third fields are the page's
size unpacked and packed (parquet.thrift, PageHeader).
"""

import mmap
from pathlib import Path

import pyarrow.parquet as pq

_BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 3, 7, 8, 9, 10, 12
_TRUE, _FALSE = 1, 2


def largest(file: Path, metadata: pq.FileMetaData, group: int, columns: set[str]) -> int:
    """Bytes of the largest page, unpacked, of some top-level columns of a row group.

    Raises:
        ValueError: if a header is damaged. OSError: if the file cannot be read.
    """
    found = 0
    with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
            if column.path_in_schema.split(".")[0] in columns:
                first = column.dictionary_page_offset if column.has_dictionary_page else None
                at = column.data_page_offset if first is None else first
                end = at + column.total_compressed_size
                while at < end:
                    header = _Header(data, at)
                    found, at = max(found, header.unpacked), header.end + header.packed
    return found


class _Header:
    """A page's header: the sizes it tells, and where it ends."""

    def __init__(self, data: mmap.mmap, at: int):
        self._data, self.end, self.unpacked, self.packed = data, at, -1, -1
        try:
            self._struct(0)
        except (IndexError, RecursionError) as error:
            raise ValueError("a page's header is damaged") from error
        if min(self.unpacked, self.packed) < 0:
            raise ValueError("a page's header tells no size")

    def _byte(self) -> int:
        self.end += 1
        return self._data[self.end - 1]

    def _number(self) -> int:
        """An integer of any length, seven bits a byte, not unfolded yet."""
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise IndexError
        return value | byte << shift

    def _struct(self, depth: int) -> None:
        if depth > 16:
            raise RecursionError
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            kind = head & 0x0F
            if depth == 0 and field in (2, 3) and kind == 5:
                size = self._signed()
                self.unpacked, self.packed = (
                    (size, self.packed) if field == 2 else (self.unpacked, size)
                )
            else:
                self._skip(kind, depth, inside=True)

    def _signed(self) -> int:
        value = self._number()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, kind: int, depth: int, inside: bool) -> None:
        """Goes behind a value; `inside` a struct the kind of a truth value is the value."""
        if self.end > len(self._data):
            raise IndexError
        if kind in (_TRUE, _FALSE):
            self.end += not inside
        elif kind in (_BYTE, _DOUBLE):
            self.end += 1 if kind == _BYTE else 8
        elif kind in (4, 5, 6):
            self._number()
        elif kind == _BINARY:
            length = self._number()  # which moves on itself
            self.end += length
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._number()
            for _ in range(count):
                self._skip(head & 0x0F, depth, inside=False)
        elif kind == _STRUCT:
            self._struct(depth + 1)
        else:
            raise IndexError
