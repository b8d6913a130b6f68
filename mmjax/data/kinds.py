"""Which kind a picture is of: that of its source, or the nearest in aspect."""

from dataclasses import replace

import numpy as np

from mmjax.batch import Document, Image
from mmjax.config import DataConfig
from mmjax.data.pixels import Encoded, size_of
from mmjax.error import UserError


def encoded(c: DataConfig, picture: Image, place: str = "") -> Encoded | np.ndarray:
    """A picture as `decode_all` takes it; `place` is where it stands, for errors."""
    if isinstance(picture.content, np.ndarray):
        return picture.content
    size = c.sizes[picture.kind] if picture.kind else c.image
    return Encoded(picture.data, size, c.resizes(picture.loss), picture.shrink, place)


def only_read(picture: Image) -> Image:
    """A picture as it is in the prompts of training."""
    return replace(picture, loss=False)


def kind_of(c: DataConfig, data: bytes) -> int:
    """The kind a picture takes by its aspect: the nearest among the default and what is like it.

    Raises:
        UserError: if the bytes are no readable picture.
    """
    height, width = size_of(data)
    shapes = [(0, 1.0)] + [
        (number, k.width / k.height)
        for number, k in enumerate(c.kinds.values(), start=1)
        if not k.sources  # so have all modalities of their own
    ]
    return min(shapes, key=lambda shape: abs(np.log(width / height / shape[1])))[0]


def with_kinds(c: DataConfig, document: Document, source: str | None = None) -> Document:
    """A document whose pictures have the kind of their source, the one they say, or their aspect's.

    Raises:
        UserError: for a kind that there is not, or bytes that are no readable picture.
    """
    names = ["image", *c.kinds]
    for p in document:
        if isinstance(p, Image) and p.of and p.of not in names:
            raise UserError(f"kind={p.of!r} is unknown; have: {', '.join(names)}")
    if not c.kinds:
        return document
    said = [n for n, k in enumerate(c.kinds.values(), start=1) if source in k.sources]

    def number(p: Image) -> int:
        if said or p.of:
            return said[0] if said else names.index(p.of)
        return kind_of(c, p.data)

    def told(p: Image) -> Image:
        n = number(p)
        return replace(p, kind=n, modality=c.modalities[n])

    return [told(p) if isinstance(p, Image) else p for p in document]
