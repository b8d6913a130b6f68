"""Reads the prepared set of OpenMoji, without what makes it; see `openmoji`.

TFDS is imported where it is used: most of what reads data sets has none of it.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from mmjax import paths
from mmjax.batch import Image, Text
from mmjax.data.record import Record
from mmjax.error import UserError, near

SPLITS = ("train", "validation", "test", "compositional")


def open_set(path: Path):
    """The data set in a directory, as TFDS's builder of it.

    Raises:
        UserError: if it is absent, damaged, or another one.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    command = f"mmjax data build --src=openmoji --dst={path}"
    if not (path / "dataset_info.json").is_file():
        raise UserError(f"no data set in {path}; make it with `{command}`")
    try:
        builder = tfds.builder_from_directory(path)
    except (ParseError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, then `{command}`") from error
    if builder.name != "openmoji":
        raise UserError(f"{path} holds the data set {builder.name!r}, not openmoji")
    for part in builder.info.splits.values():
        for file in part.filepaths:
            if not Path(file).is_file():
                raise UserError(f"{path} lacks {file.name}; remove it, then `{command}`")
    return builder


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Records by number, made by `read`; a damaged record raises UserError when it is asked for."""

    raw: Sequence[bytes]
    name: str

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2

        index = range(len(self.raw))[index]  # IndexError past the end, as iteration needs
        try:
            # TFDS's own decoder takes four times as long for the same five fields.
            example = tf_example_pb2.Example.FromString(self.raw[index])
        except RuntimeError as error:
            where = f"{self.name}, record {index}"
            raise UserError(f"{where} is damaged; remove the set, build again: {error}") from error
        fields = {k: v.bytes_list.value[0] for k, v in example.features.feature.items()}
        text = {k: v.decode() for k, v in fields.items() if k != "image"}
        document = (Text(text["caption"]), Image(fields["image"]))
        return Record(text["id"], document, {k: text[k] for k in ("concept", "tone")})


def read(path: str | os.PathLike, split: str) -> Source:
    """The records of one split: caption and PNG, with the facts `concept` and `tone`; picklable.

    Raises:
        UserError: if there is no such data set (naming the command that makes it) or split.
    """
    import tensorflow_datasets as tfds

    builder = open_set(paths.near(paths.of(path)))
    if split not in builder.info.splits:
        have = [*builder.info.splits]
        hint = near(split, have)
        raise UserError(f"{path} has no split {split!r}{hint}; have: {', '.join(have)}")
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return Source(builder.as_data_source(split, deserialize_method=raw), f"{path}, {split}")
