"""A user's own files: one module a format, each with a function `items`, path -> items.

They are imported when they are used: some need packages of an extra.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmjax.extra import need

if TYPE_CHECKING:
    from mmjax.data.record import Item

FORMATS: Mapping[str, str] = {  # name -> module
    name: f"{__name__}.{name}"
    for name in ("folder", "jsonl", "llava", "parquet", "webdataset", "dicom", "text")
}
# Directories that hold a user's own files: those, and one that takes options.
READERS: Mapping[str, str] = {**FORMATS, "emoji": "mmjax.data.sets.emoji"}


def reader(form: str) -> Callable[[Path], "Iterator[Item]"]:
    """What reads a format of FORMATS.

    Raises:
        UserError: if it needs a package that is not installed.
    """
    return need(FORMATS[form]).items
