"""Resizing by named modes: the same picture, shrunk by two libraries, is not the same picture.

All modes but those in `_pad` and `_stretch` keep the largest box of the wanted shape
at the centre and bring it to `size`, a side or (height, width); for a side the box is the central
square. Where a kernel reaches over the square's border it sees the pixels there, as if the whole
picture had been resized and its centre cut out. Only Pillow rounds and clips between rows and
columns, the cheaper of which it takes first, so there the two ways may differ.

`pil_*` and `nearest` are Pillow's own. The others are matrices in NumPy, for these functions run in
processes that must leave the accelerator alone. Compared with the originals on two photographs,
2.5 times smaller and 1.2 times larger: `torch_bicubic` with torch 2.13 and `jax_cubic` with jax
0.10.2, equal but for ties of rounding; `nearest` with torch's "nearest-exact", equal.
`tf1_bilinear` follows its documented formula and was compared with no TensorFlow.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import PIL.Image
from PIL.Image import Resampling
from scipy.sparse import csr_array

MEAN_COLOUR = (122, 116, 104)  # int(255 * mean) of each channel of CLIP's
WHITE = (255, 255, 255)
PIXELS = 89_478_485  # most of an image, and of what is made of it on the way; 256 MiB as RGB
SIDE = 1 << 16  # longer sides are shrunk to so much at first; few formats have any
CHUNK = 1 << 22  # numbers that are held in double precision at a time
Size = int | tuple[int, int]  # a side, or (height, width)


def pil_box(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: mean over the area an output pixel covers."""
    return _pillow(pixels, size, Resampling.BOX)


def pil_bilinear_aa(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: triangle, as wide as the picture shrinks."""
    return _pillow(pixels, size, Resampling.BILINEAR)


def pil_bicubic_aa(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: cubic with a = -0.5, as wide as it shrinks."""
    return _pillow(pixels, size, Resampling.BICUBIC)


def pil_lanczos(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: sinc windowed to 3 lobes, as wide as it shrinks."""
    return _pillow(pixels, size, Resampling.LANCZOS)


def pil_bicubic_pad(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: nothing is cut off (LLaVA 1.5, "pad").

    The picture in the middle of the smallest box of the wanted shape, the rest in the mean colour
    of CLIP's pictures, brought to size as by `pil_bicubic_aa`.
    """
    return pil_bicubic_aa(_padded(pixels, size, MEAN_COLOUR), size)


def pil_lanczos_pad(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: nothing is cut off, the rest is white.

    For pictures in Chameleon's prompts (section 3.2, which does not tell the colour; transparent
    pictures its code lays on white).
    """
    return pil_lanczos(_padded(pixels, size, WHITE), size)


def pil_bicubic_stretch(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: the whole picture, whatever its aspect (SigLIP)."""
    return _stretched(pixels, size, Resampling.BICUBIC)


def pil_bilinear_stretch(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: the whole picture, by triangles (SigLIP 2)."""
    return _stretched(pixels, size, Resampling.BILINEAR)


def _stretched(pixels: np.ndarray, size: Size, kernel: Resampling) -> np.ndarray:
    high, wide = (size, size) if isinstance(size, int) else size
    picture = PIL.Image.fromarray(pixels)
    if max(picture.size) > SIDE:  # Pillow's weights would take 32 bytes a pixel of it
        across, down = (-(-n // SIDE) for n in picture.size)
        picture = picture.reduce((across, down))
    return np.asarray(picture.resize((wide, high), kernel))


def nearest(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: the pixel under an output pixel's centre."""
    return _pillow(pixels, size, Resampling.NEAREST)


def torch_bicubic(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: cubic with a = -0.75, always 4 pixels wide.

    torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False) on float
    pixels, rounded and clipped. Beyond its border a picture goes on with its last pixel.
    """

    def weights(n: int, first: int, side: int, size: int) -> np.ndarray:
        at = (np.arange(size) + 0.5) * (side / size) - 0.5 + first
        taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
        return _gather(taps, _cubic(at[:, None] - taps, -0.75), n)

    return _matrices(pixels, size, weights)


def tf1_bilinear(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: bilinear from TensorFlow 1, always 2 pixels wide.

    tf.image.resize_bilinear(align_corners=False, half_pixel_centers=False): output pixel i lies at
    i * h / size, so the picture moves by up to half a pixel. Original Inception scores need it.
    """

    def weights(n: int, first: int, side: int, size: int) -> np.ndarray:
        at = np.arange(size) * (side / size) + first
        taps = np.floor(at).astype(int)[:, None] + np.arange(2)
        return _gather(taps, 1 - abs(at[:, None] - taps), n)

    return _matrices(pixels, size, weights)


def jax_cubic(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[h, w, 3] uint8 -> [size, size, 3] uint8: cubic with a = -0.5, as wide as it shrinks.

    jax.image.resize(method="cubic", antialias=True) on float pixels, rounded and clipped. Pillow's
    kernel too, but Pillow rounds and clips between rows and columns.
    """

    def weights(n: int, first: int, side: int, size: int) -> np.ndarray:
        at = (np.arange(size) + 0.5) * (side / size) - 0.5 + first
        found = _cubic((at[:, None] - np.arange(n)) / max(side / size, 1.0), -0.5)
        return found / found.sum(1, keepdims=True)

    return _matrices(pixels, size, weights)


RESIZE: Mapping[str, Callable[[np.ndarray, Size], np.ndarray]] = {
    "pil_box": pil_box,
    "pil_bilinear_aa": pil_bilinear_aa,
    "pil_bicubic_aa": pil_bicubic_aa,
    "pil_bicubic_pad": pil_bicubic_pad,
    "pil_bicubic_stretch": pil_bicubic_stretch,
    "pil_bilinear_stretch": pil_bilinear_stretch,
    "pil_lanczos": pil_lanczos,
    "pil_lanczos_pad": pil_lanczos_pad,
    "torch_bicubic": torch_bicubic,
    "tf1_bilinear": tf1_bilinear,
    "jax_cubic": jax_cubic,
    "nearest": nearest,
}


def _box(pixels: np.ndarray, size: Size) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """(Height, width) that are wanted; top, left, height and width of what is kept for them."""
    high, wide = (size, size) if isinstance(size, int) else size
    height, width = pixels.shape[:2]
    h = max(min(height, width * high // wide), 1)
    w = max(min(width, height * wide // high), 1)
    return (high, wide), ((height - h) // 2, (width - w) // 2, h, w)


def _padded(pixels: np.ndarray, size: Size, colour: tuple[int, int, int]) -> np.ndarray:
    """A picture in the middle of the smallest box of the shape of `size` that holds it.

    A box of more than PIXELS is made, with what is in it, as many times smaller as it must be.
    """
    high, wide = (size, size) if isinstance(size, int) else size
    height, width = pixels.shape[:2]
    h, w = max(height, -(-width * high // wide)), max(width, -(-height * wide // high))
    if (times := math.ceil(math.sqrt(h * w / PIXELS))) > 1:
        if w > width:
            tall = _thinned(pixels.swapaxes(0, 1), times, colour)
            return _padded(tall.swapaxes(0, 1), size, colour)
        return _padded(_thinned(pixels, times, colour), size, colour)
    canvas = PIL.Image.new("RGB", (w, h), colour)
    canvas.paste(PIL.Image.fromarray(pixels), ((w - width) // 2, (h - height) // 2))
    return np.asarray(canvas)


def _thinned(pixels: np.ndarray, times: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A wide picture `times` smaller, means over areas; some rows of a colour are above and below.

    They make its height a multiple of `times`.
    """
    height, width = pixels.shape[:2]
    small = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    small = small.resize((-(-width // times), height), Resampling.BOX)
    rows = -(-height // times)
    strip = PIL.Image.new("RGB", (small.width, rows * times), colour)
    strip.paste(small, (0, (strip.height - height) // 2))
    return np.asarray(strip.resize((small.width, rows), Resampling.BOX))


def _pillow(pixels: np.ndarray, size: Size, kernel: Resampling) -> np.ndarray:
    (high, wide), (top, left, h, w) = _box(pixels, size)
    picture = PIL.Image.fromarray(pixels)
    box = (left, top, left + w, top + h)
    return np.asarray(picture.resize((wide, high), kernel, box=box))


def _matrices(
    pixels: np.ndarray, size: Size, weights: Callable[[int, int, int, int], np.ndarray]
) -> np.ndarray:
    """`weights(n, first, side, size)`: [size, n], what each output pixel takes of n pixels."""
    (high, wide), (top, left, h, w) = _box(pixels, size)
    # All that kernels reach; of a long picture it is little.
    above, beside = (2 * math.ceil(max(n / m, 1)) + 2 for n, m in ((h, high), (w, wide)))
    first, begin = max(top - above, 0), max(left - beside, 0)
    pixels = pixels[first : top + h + above, begin : left + w + beside]
    top, left = top - first, left - begin
    rows = weights(pixels.shape[0], top, h, high)
    columns = weights(pixels.shape[1], left, w, wide)
    found = _along_first(columns, _along_first(rows, pixels).swapaxes(0, 1)).swapaxes(0, 1)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def _along_first(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """[size, n] x [n, m, 3] -> [size, m, 3], in double precision."""
    # A few weights a row are not zero: sparse takes a quarter of the time.
    sparse, flat = csr_array(matrix), pixels.reshape(len(pixels), -1)
    step = max(CHUNK // len(flat), 1)
    parts = range(0, flat.shape[1], step)
    found = [sparse @ flat[:, at : at + step].astype(float) for at in parts]
    return np.concatenate(found, 1).reshape(len(matrix), *pixels.shape[1:])


def _gather(taps: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Taps [size, k] with their weights -> [size, n]; taps beyond the border fall onto it."""
    matrix = np.zeros((len(taps), n))
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps.clip(0, n - 1)), weights)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981, equation 4 for a = -0.5)."""
    x = abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
