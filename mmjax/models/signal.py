"""Pictures as they are denoised: pixels, or the latents of a KL codec; standardised either way.

Everywhere `c` says how (`transfusion.Config`, or one `models.kind.Kind`), and `codec` is the codec
of `c.codec`, None for pixels.
"""

from functools import partial

import jax.numpy as jnp

from mmjax.codecs import autoencoder
from mmjax.codecs.autoencoder import Codec
from mmjax.layers.patch import to_pixels, to_signal


def of_pixels(c, codec: Codec | None, params, x):
    """[b, i, h, w, 3] uint8 -> [b, i, h, w, c] f32; latents, where the data hold them, as well."""
    if codec is None:
        x = to_signal(x)
    elif x.dtype == jnp.uint8:
        flat, encode = x.reshape(-1, *x.shape[2:]), partial(autoencoder.encode_latents, codec)
        used = jnp.ones(len(flat), bool)
        made = autoencoder.in_groups(codec, partial(encode, params["codec"]), flat, used)
        x = made.reshape(*x.shape[:2], *made.shape[1:])
    return (x.astype(jnp.float32) - c.signal_mean) / c.signal_std


def to_picture(c, codec: Codec | None, params, signal):
    """Standardised signals [n, h, w, c] -> uint8 pixels [n, h, w, 3]."""
    x = signal * c.signal_std + c.signal_mean
    return to_pixels(x) if codec is None else autoencoder.decode_latents(codec, params["codec"], x)
