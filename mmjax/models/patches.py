"""Pictures with noise in, pictures out: the two ends of a decoder that denoises.

By one matrix each, or by the halves of a U-Net (Transfusion, section 3.1).
"""

from functools import partial

import flax.linen as nn

from mmjax.layers import unet
from mmjax.layers.linear import linear
from mmjax.layers.mlp import TwoLayer
from mmjax.layers.patch import patchify, unpatchify
from mmjax.layers.position import time_features
from mmjax.layers.weight import Layer, normal, plus, zeros

TIME_FEATURES = 256


class PatchIn(Layer):
    """Noisy signals and their noise level -> inputs of the decoder.

    Attributes:
        unet: channels of the U-Net, 0 for one matrix. patch: side of a patch in numbers of the
            signal. patches: of a picture, p. width: d.
    """

    unet: int
    patch: int
    patches: int
    width: int

    @nn.compact
    def __call__(self, x, t):
        """x [b, i, h, w, c], t [b, i] or, without a U-Net, one a patch [b, i, p].

        Returns:
            ([b, i, p, d], what PatchOut needs of it).
        """
        d, at = self.width, (self.rules, self.dtype)
        x = x.astype(self.dtype)
        time = TwoLayer(*at, d, name="time")(time_features(t, TIME_FEATURES))
        start = partial(normal, scale=0.5)
        place = self.weight("place", (self.patches, d), (None, "embed"), start, "float32")
        if self.unet:
            down = unet.Down(*at, self.unet, self.patch, d, name="down")
            flat, skips = down(x.reshape(-1, *x.shape[2:]), time.reshape(-1, d))
            return plus(flat.reshape(*x.shape[:2], -1, d), place[None, None]), (time, skips)
        x = patchify(x, self.patch)
        w = self.weight("patch", (x.shape[-1], d), (None, "embed"))
        time = time if t.ndim == 3 else time[:, :, None]
        return plus(linear(x, w), place[None, None], time), ()


class PatchOut(Layer):
    """Decoder outputs at patches -> numbers of the signal; starts at zero.

    Attributes:
        unet, patch: as PatchIn has them. shape: (h, w, c) of the signal.
    """

    unet: int
    patch: int
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, x, kept):
        """x [b, i, p, d], `kept` of PatchIn -> [b, i, h, w, c] f32."""
        h, w, c = self.shape
        if self.unet:
            time, skips = kept
            up = unet.Up(self.rules, self.dtype, self.unet, self.patch, c, name="up")
            y = up(x.reshape(-1, *x.shape[2:]), time.reshape(-1, time.shape[-1]), skips)
            return y.reshape(*x.shape[:2], h, w, c)
        shape = (x.shape[-1], self.patch**2 * c)
        weight = self.weight("patch", shape, ("embed", None), zeros)
        return unpatchify(linear(x, weight, 1, "float32"), self.patch, h, w)
