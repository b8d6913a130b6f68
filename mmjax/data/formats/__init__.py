"""A user's own files: one module a format, each a function path -> items."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mmjax.data.formats import dicom, folder, jsonl, llava, parquet, text, webdataset
from mmjax.data.record import Item

FORMATS: Mapping[str, Callable[[Path], Iterator[Item]]] = {
    "folder": folder.items,
    "jsonl": jsonl.items,
    "llava": llava.items,
    "parquet": parquet.items,
    "webdataset": webdataset.items,
    "dicom": dicom.items,
    "text": text.items,
}
