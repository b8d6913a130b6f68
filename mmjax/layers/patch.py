"""Pictures <-> patches, and patches <-> positions of a sequence."""

import jax.numpy as jnp

from mmjax.batch import patch_index, slot_columns
from mmjax.layers.weight import gather


def to_signal(pixels, dtype=jnp.float32):
    """uint8 pixels in 0 ... 255 -> values in [-1, 1]."""
    return pixels.astype(dtype) / 127.5 - 1.0


def to_pixels(signal):
    """Values in [-1, 1] (clipped) -> uint8 pixels."""
    return jnp.round((jnp.clip(signal, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def patchify(images, patch: int):
    """[..., h, w, 3] -> [..., p, patch * patch * 3], patches in raster order."""
    *lead, h, w, channels = images.shape
    rows, columns = h // patch, w // patch
    x = images.reshape(*lead, rows, patch, columns, patch, channels)
    x = jnp.moveaxis(x, -4, -3)  # rows and columns of patches side by side
    return x.reshape(*lead, rows * columns, patch * patch * channels)


def unpatchify(patches, patch: int, height: int, width: int):
    """The inverse of patchify: [..., p, patch * patch * 3] -> [..., height, width, 3]."""
    *lead, _, size = patches.shape
    channels = size // (patch * patch)
    x = patches.reshape(*lead, height // patch, width // patch, patch, patch, channels)
    return jnp.moveaxis(x, -3, -4).reshape(*lead, height, width, channels)


def spread(patches, image):
    """Puts embedded patches where their positions are.

    Args:
        patches: [b, i, p, d], one row of p patches a slot.
        image: [b, l] int32, Batch.image.

    Returns:
        [b, l, d]; positions of text hold some patch and must be masked by the caller.
    """
    b, slots, count, d = patches.shape
    source = jnp.maximum(image - 1, 0) * count + patch_index(image)
    return gather(patches.reshape(b, slots * count, d), source[:, :, None], axis=1)


def collect(x, image, slots: int, count: int):
    """The reverse: [b, l, d] -> [b, i, p, d]; empty slots hold arbitrary values."""
    first, _ = slot_columns(image, slots)
    columns = first[:, :, None] + jnp.arange(count)[None, None]
    columns = jnp.minimum(columns, x.shape[1] - 1).reshape(x.shape[0], slots * count)
    rows = gather(x, columns[:, :, None], axis=1)
    return rows.reshape(x.shape[0], slots, count, x.shape[-1])
