"""Encoded images, accepted only if loaders read them."""

import os

from mmjax.data import pixels

# File names that end so are images, of pixels.FORMATS.
ENDINGS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".webp", ".gif", ".bmp", ".tif",
    ".tiff", ".avif",
)  # fmt: skip
# And so those of images in formats that are not read, which users convert first.
UNREAD = (
    ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".svgz", ".eps", ".ps",
    ".pdf", ".psd", ".xcf", ".ico", ".icns", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx",
    ".dds", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
)  # fmt: skip


def is_path(text: str) -> bool:
    """Whether a text on the command line is the path of an image.

    One in a format that is not read is if the file is there, so that it is refused by name.
    """
    name = text.lower()
    return name.endswith(ENDINGS) or (name.endswith(UNREAD) and os.path.isfile(text))


def checked(data: bytes) -> bytes:
    """The same bytes, after decoding them once as loaders do (of an animation, the first frame).

    Raises:
        ValueError: if they are no image, damaged, or of too many pixels, see `pixels.read`.
    """
    pixels.read(data)
    return data
