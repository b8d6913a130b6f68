"""Images of any kind to pixels. Worker processes import this, so it needs little and no JAX.

`read` alone decides which encoded images there are: builders accept what it reads, and loaders,
prompts and evaluations read by it.
"""

import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.ExifTags
import PIL.Image
from PIL.Image import Transpose

from mmjax import paths
from mmjax.data.metadata import bare
from mmjax.data.resize import PIXELS, Size, pil_bilinear_aa, pil_box
from mmjax.data.source import BYTES, content
from mmjax.data.steps import to_size
from mmjax.error import UserError

# Nothing else Pillow could read: some of its decoders start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_QUIET = threading.Lock()  # the filters of warnings are the process's
# What turns an image upright, by its EXIF orientation.
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # fmt: skip
_TILE = (322, 323)  # TIFF's tags of width and height
T = TypeVar("T")


class Encoded(NamedTuple):
    """An encoded picture, how it is to be read, see `decode_image`, and where it comes from."""

    data: bytes
    size: Size
    resize: str
    shrink: int = 1
    name: str = ""

    def decoded(self) -> np.ndarray:
        """Its pixels.

        Raises:
            UserError: naming where it comes from.
        """
        try:
            return decode_image(self.data, self.size, self.resize, self.shrink)
        except UserError as error:
            raise UserError(f"{self.name}: {error}" if self.name else str(error)) from error


def read(data: bytes) -> PIL.Image.Image:
    """An encoded image -> RGB, upright, see `upright`; of an animation the first frame.

    Metadata count for the orientation alone; damaged ones are passed over.

    Raises:
        ValueError: if the bytes are of none of FORMATS, damaged, or of more than PIXELS pixels.
    """
    return _with(data, upright)


def _with(data: bytes, function: Callable[[PIL.Image.Image], T]) -> T:
    """What a function makes of the opened image, if need be of one without its metadata.

    Raises:
        ValueError: saying in one line why there is none.
    """
    try:
        return _opened(data, function)
    except Exception as error:  # decoders of damaged bytes raise whatever they trip over
        less = bare(data)
        if less != data:
            try:
                return _opened(less, function)
            except Exception:  # the first error tells of the file as it is
                raise _said(error) from error
        raise _said(error) from error


def _opened(data: bytes, function: Callable[[PIL.Image.Image], T]) -> T:
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are checked here
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(*image.size)
            if image.format == "TIFF":  # a tile may be larger than the image
                check_size(*(int(image.tag_v2.get(side, 1)) for side in _TILE))  # type: ignore
            return function(image)


def _said(error: Exception) -> ValueError:
    """Why an image cannot be read, in one line."""
    if isinstance(error, PIL.UnidentifiedImageError):  # it would name an object in memory
        return ValueError(f"not a picture of a known kind ({', '.join(FORMATS)}); convert it")
    if isinstance(error, PIL.Image.DecompressionBombError):
        return _too_large()
    if isinstance(error, _Refused):
        return error
    why = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"damaged picture: {why}")


class _Refused(ValueError):
    """An image that may be whole, but is not read."""


def _too_large() -> _Refused:
    return _Refused(f"picture of more than {PIXELS:,} pixels")


def check_size(width: int, height: int) -> None:
    """Refuses images that would take too much memory.

    Raises:
        ValueError: if there are more than PIXELS pixels.
    """
    if width * height > PIXELS:
        raise _too_large()


def size_of(data: bytes) -> tuple[int, int]:
    """(Height, width) of an encoded image once it is upright; of most only the header is read.

    Raises:
        UserError: if the bytes are no readable image.
    """
    try:
        width, height = _with(data, _upright_size)
    except ValueError as error:
        raise _unreadable(data, error) from error
    return height, width


def _upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":
        image.load()  # which turns it
    turned = _turn(image) in (
        Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90
    )  # fmt: skip
    return image.size[::-1] if turned else image.size


def _unreadable(data: bytes, error: Exception) -> UserError:
    return UserError(f"a picture of {len(data)} bytes cannot be decoded: {error}")


def decode_image(data: bytes, size: Size, resize: str, shrink: int = 1) -> np.ndarray:
    """Encoded picture -> [size, size, 3] uint8, by a mode of `data.resize` or by `data.steps`.

    `size` may be (height, width). With `shrink` > 1, which divides size, what the picture shows is
    what is left of it when each square of shrink x shrink pixels has become one: their mean, and
    bilinear between the means.

    Raises:
        UserError: if the bytes are no readable picture.
    """
    try:
        picture = read(data)
    except ValueError as error:
        raise _unreadable(data, error) from error
    pixels = to_size(np.asarray(picture, np.uint8), size, resize)
    if shrink == 1:
        return pixels
    if not isinstance(size, int):
        raise TypeError("only squares are read as if they had fewer pixels")
    return pil_bilinear_aa(pil_box(pixels, size // shrink), size)


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any image of at most 16 bits -> RGB, turned as its EXIF says, transparency laid on white.

    Raises:
        ValueError: if its numbers have 32 bits: they do not say what is white.
        Exception: whatever Pillow raises for damaged or unknown content.
    """
    if image.mode in ("I", "F"):  # which convert() would clip to 0 ... 255, so to white or black
        raise _Refused(
            "it has numbers of 32 bits, which do not say what is white; save it with 8 or 16 bits"
        )
    image.load()
    turn = _turn(image)
    image = _rgb(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: PIL.Image.Image) -> Transpose | None:
    """What turns it upright. (A TIFF is turned by Pillow as it is loaded.)"""
    try:
        found = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:  # of damaged metadata the parser raises whatever it trips over
        return None
    return _TURNS.get(found) if isinstance(found, int) else None


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):  # 16 bits of grey, which convert() would clip to white
        deep = np.asarray(image)
        grey = (deep >> 8).astype(np.uint8)
        if isinstance(clear, int):  # the grey that is transparent
            grey = np.where(deep == clear, np.uint8(255), grey)
        return PIL.Image.fromarray(grey).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms  # rarely needed

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        made = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert made is not None  # it is only where the image itself is changed
        return made
    if image.mode in ("La", "RGBa"):  # multiplied by their opacity
        image = image.convert(image.mode.replace("a", "A"))
    if image.mode in ("RGBA", "LA", "PA") or clear is not None:
        ground = PIL.Image.new("RGBA", image.size, "white")
        return PIL.Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def is_image(given: Any) -> bool:
    """Whether `encode` takes it for an image."""
    kinds = bytes | bytearray | memoryview | os.PathLike | PIL.Image.Image
    return isinstance(given, kinds) or hasattr(given, "__array__") or hasattr(given, "read")


def encode(given: Any) -> bytes:
    """What a user hands over -> an encoded image.

    Args:
        given: a file's path (os.PathLike), its bytes, a file opened to read bytes, a PIL.Image of
            any mode, or uint8 [h, w, 3]. Of files and of a PIL.Image the orientation in their EXIF
            counts; an array is taken as it is.

    Raises:
        UserError: if it is no image, or one that cannot be read.
    """
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, os.PathLike):
        return _file(paths.of(given))
    if isinstance(given, PIL.Image.Image):
        return _png(given)
    if hasattr(given, "__array__"):
        return _png(_of_array(np.asarray(given)))
    return _stream(given)


def _file(path: Path) -> bytes:
    try:
        data = content(paths.near(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"picture {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"picture {path} cannot be read: {error}") from error
    try:
        read(data)  # now, while it is known which file it is
    except ValueError as error:
        what = f"a picture of {len(data)} bytes cannot be decoded: {error}"
        raise UserError(f"picture {path}: {what}") from error
    return data


def _stream(given: Any) -> bytes:
    try:
        if given.seekable():
            given.seek(0)
        data = bytearray()
        while len(data) <= BYTES and (part := given.read(1 << 20)):
            data += part
    except TypeError as error:
        raise UserError(
            f"a picture's file gives no bytes ({error}); open it in mode 'rb'"
        ) from error
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(f"a picture's file cannot be read: {error}; open it anew") from error
    if len(data) > BYTES:
        raise UserError(f"a picture's file has more than {BYTES:,} bytes")
    return bytes(data)


def _of_array(array: np.ndarray) -> PIL.Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"a picture's pixels are uint8 [h, w, 3], not {array.dtype} {list(array.shape)}"
        )
    return PIL.Image.fromarray(array)


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    try:
        check_size(*image.size)
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            upright(image).save(file, "PNG")
    except Exception as error:  # what decoders raise, for Pillow reads late, and conversions
        what = f"a picture in mode {image.mode!r} of {image.size[0]} x {image.size[1]} pixels"
        raise UserError(f"{what} cannot be read: {_said(error)}") from error
    return file.getvalue()


def decode_all(pictures: Sequence[Encoded | np.ndarray]) -> list[np.ndarray]:
    """Encoded pictures -> [size, size, 3] uint8 each, see `decode_image`; latents as they are."""
    return [p if isinstance(p, np.ndarray) else p.decoded() for p in pictures]


def start_worker() -> None:
    """Makes a worker process leave with its parent, however that ends, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
