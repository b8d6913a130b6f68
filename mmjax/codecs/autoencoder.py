"""The convolutional autoencoder of VQGAN and Chameleon, around a quantiser.

Encoder: a convolution, then levels of residual blocks, each level but the last halving the side;
residual, attention, residual; out to the latent. The decoder mirrors it, one block a level more.
Chameleon's (section 2.1, from Gafni et al. 2022): 128 channels times (1, 1, 2, 2, 4), two blocks,
512 x 512 pixels to 32 x 32 codes of 8,192.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.codecs import quantise
from mmjax.codecs.quantise import QuantiserConfig
from mmjax.error import UserError
from mmjax.layers.conv import Conv, PlaceAttention, Residual, double, group_norm
from mmjax.layers.patch import to_pixels, to_signal
from mmjax.layers.vision import standard
from mmjax.layers.weight import Layer, check_dtype, ones, pieces, zeros
from mmjax.mesh import Rules

HELD = 2**30  # bytes of one activation of an encoder or decoder that need no gradient


@dataclass(frozen=True)
class CodecConfig:
    """A codec.

    Attributes:
        image: side of the pictures in pixels.
        channels: of the first level. multipliers: of them, a level; each level halves the side but
            the last. blocks: residual blocks a level. attend: sides at which places attend, of
            pictures of side `image`; of others the levels that such pictures have there.
        latent: z, channels between encoder and bottleneck.
        quantiser: the quantiser.
        dtype: precision of activations.
        middle: places attend between the levels of the encoder and of the decoder too.
        mean, std: of bytes over 255, a channel: what the encoder reads is (x - mean) / std, so in
            [-1, 1] unless an imported one reads otherwise.
    """

    image: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attend: tuple[int, ...]
    latent: int
    quantiser: QuantiserConfig
    dtype: str
    middle: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        """Checks fields against each other."""
        sizes = {k: getattr(self, k) for k in ("image", "channels", "blocks", "latent")}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"codec.{name}={value} must be at least 1")
        check_dtype(self.dtype, "codec")
        if not self.multipliers or min(self.multipliers) < 1 or self.image % self.factor:
            raise UserError(
                f"codec.image={self.image} must be divisible by {self.factor}, 2 to the number of "
                f"codec.multipliers less one, which are at least 1"
            )
        sides = [self.image >> level for level in range(len(self.multipliers))]
        if wrong := [side for side in self.attend if side not in sides]:
            raise UserError(f"codec.attend={self.attend} has {wrong[0]}; levels have sides {sides}")

    @property
    def factor(self) -> int:
        """Pixels a place in each direction."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def side(self) -> int:
        """Places a row."""
        return self.image // self.factor

    @property
    def tokens(self) -> int:
        """Codes a picture, in raster order, those of one place side by side."""
        return self.side**2 * self.quantiser.depth

    @property
    def codes(self) -> int:
        """Different codes; each of several codebooks has ids of its own. 0 for latents."""
        return self.quantiser.codes * self.quantiser.depth


class Encoder(Layer):
    """Pictures to what the bottleneck reads."""

    c: CodecConfig

    @nn.compact
    def __call__(self, x):
        """[n, h, w, 3] in [-1, 1] -> [n, h / factor, w / factor, c]."""
        c, at = self.c, (self.rules, self.dtype)
        x = Conv(*at, c.channels, name="in")(x)
        for level, multiplier in enumerate(c.multipliers):
            for block in range(c.blocks):
                x = Residual(*at, c.channels * multiplier, name=f"level{level}_{block}")(x)
                if c.image >> level in c.attend:
                    x = PlaceAttention(*at, name=f"attend{level}_{block}")(x)
            if level < len(c.multipliers) - 1:
                x = Conv(*at, x.shape[-1], stride=2, name=f"down{level}")(x)
        x = _middle(self, x, c.middle)
        x = Conv(*at, c.latent, name="out")(jax.nn.silu(group_norm(self, "out_norm", x)))
        width = c.quantiser.width * (2 if c.quantiser.kind == "kl" else 1)
        return Conv(*at, width, kernel=1, name="to_codes")(x)


class Decoder(Layer):
    """What comes out of the bottleneck to the features its last convolution reads."""

    c: CodecConfig

    @nn.compact
    def __call__(self, z):
        """[n, h / factor, w / factor, c] -> [n, h, w, channels]."""
        c, at = self.c, (self.rules, self.dtype)
        x = Conv(*at, c.latent, kernel=1, name="from_codes")(z)
        x = Conv(*at, c.channels * c.multipliers[-1], name="in")(x)
        x = _middle(self, x, c.middle)
        for level in reversed(range(len(c.multipliers))):
            for block in range(c.blocks + 1):
                width = c.channels * c.multipliers[level]
                x = Residual(*at, width, name=f"level{level}_{block}")(x)
                if c.image >> level in c.attend:
                    x = PlaceAttention(*at, name=f"attend{level}_{block}")(x)
            if level:
                x = Conv(*at, x.shape[-1], name=f"up{level}")(double(x))
        return jax.nn.silu(group_norm(self, "out_norm", x))


def _middle(layer: Layer, x, attend: bool):
    at = (layer.rules, layer.dtype)
    x = Residual(*at, x.shape[-1], name="middle_0")(x)
    x = PlaceAttention(*at, name="middle_attend")(x) if attend else x
    return Residual(*at, x.shape[-1], name="middle_1")(x)


class Book(Layer):
    """Codebooks, and how often each code was used of late."""

    c: QuantiserConfig

    @nn.compact
    def __call__(self):
        """-> {"codes" [D, K, c], "counts" [D, K], "sums" [D, K, c]}."""
        c = self.c
        shape = (c.depth, c.codes, c.width)

        def start(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -1.0 / c.codes, 1.0 / c.codes)

        # Every device needs all of it, and it is small: not split.
        codes = self.weight("codes", shape, (None,) * 3, start)
        # Where codes may restart, those that the first step hardly uses do so at once.
        counts = self.weight("counts", shape[:2], (None,) * 2, zeros if c.restart else ones)
        # As if each code had been used once: the first averages then lie where the codes began.
        sums = self.weight("sums", shape, (None,) * 3, lambda *_: codes)
        return {"codes": codes, "counts": counts, "sums": sums}


class Codec(NamedTuple):
    """A codec as functions of its parameters {"encoder", "decoder", "last", "book"}.

    Attributes:
        config: what it was built with.
        rules: the layout.
        encode: (params, signal [n, h, w, 3]) -> [n, h', w', c], what the bottleneck reads.
        read: the same in f32, whatever the precision in training: rounded to bf16, the code nearest
            to a place changes with the number of pictures that are encoded together.
        bottleneck: (params, z, weight [n], keys [n]) -> Quantised.
        features: (params, values [n, h', w', c]) -> [n, h, w, channels].
        last: (params, features) -> signal [n, h, w, 3] f32, not clipped.
    """

    config: CodecConfig
    rules: Rules
    encode: Callable
    read: Callable
    bottleneck: Callable
    features: Callable
    last: Callable


def modules(c: CodecConfig, rules: Rules) -> dict[str, Layer]:
    """A codec's submodules by the name of their subtree of the parameters."""
    at = (rules, c.dtype)
    parts: dict[str, Layer] = {
        "encoder": Encoder(*at, c),
        "decoder": Decoder(*at, c),
        "last": Conv(*at, 3),
    }
    if c.quantiser.booked:
        parts["book"] = Book(rules, "float32", c.quantiser)
    return parts


def boxed_init(key, c: CodecConfig, layers: dict[str, Layer]):
    """All parameters, each with its place on the mesh."""
    inputs = {
        "encoder": (jnp.zeros((1, c.image, c.image, 3)),),
        "decoder": (jnp.zeros((1, c.side, c.side, c.quantiser.width)),),
        "last": (jnp.zeros((1, c.image, c.image, c.channels * c.multipliers[0])),),
        "book": (),
    }
    keys = jax.random.split(key, len(layers))
    return {
        name: layer.init(k, *inputs[name])["params"]
        for k, (name, layer) in zip(keys, layers.items(), strict=True)
    }


def build(c: CodecConfig, rules: Rules) -> Codec:
    """The functions of one configuration."""
    piece = pieces(modules(c, rules))

    def bottleneck(params, z, weight, keys):
        return quantise.quantise(c.quantiser, params.get("book", {}), z, weight, keys)

    def last(params, features):
        return piece("last")(params, features).astype(jnp.float32)  # whatever the precision inside

    exact = pieces(modules(replace(c, dtype="float32"), rules))("encoder")

    def read(params, signal):
        with jax.default_matmul_precision("highest"):
            return exact(params, signal)

    return Codec(c, rules, piece("encoder"), read, bottleneck, piece("decoder"), last)


def to_ids(c: CodecConfig, codes):
    """Codes [..., h', w', depth] -> [..., tokens] int32 below `c.codes`, in raster order."""
    shift = jnp.arange(c.quantiser.depth, dtype=jnp.int32) * c.quantiser.codes
    codes = codes + shift.reshape((1,) * (codes.ndim - 1) + (-1,))
    return codes.reshape(*codes.shape[:-3], -1)


def from_ids(c: CodecConfig, ids):
    """The inverse of `to_ids`; ids of another codebook than their place's are brought into it."""
    codes = ids.reshape(*ids.shape[:-1], c.side, c.side, c.quantiser.depth)
    return codes % c.quantiser.codes


def at_a_time(c: CodecConfig) -> int:
    """Pictures whose widest activations are HELD bytes, or one."""
    return max(HELD // (4 * c.channels * c.image**2), 1)


def in_groups(codec: Codec, function: Callable, x, used):
    """function(x) of rows [n, ...], `at_a_time` a data shard; 0 for groups of which none is used.

    used: [n] bool.
    """
    n = len(x)
    shards = codec.rules.split("batch") if n % codec.rules.split("batch") == 0 else 1
    each = min(at_a_time(codec.config), -(-n // shards))
    like = jax.eval_shape(function, jax.ShapeDtypeStruct((shards * each, *x.shape[1:]), x.dtype))

    def one(group):
        x, used = group
        nothing = lambda x: jnp.zeros(like.shape, like.dtype)  # noqa: E731
        return jax.lax.cond(used.any(), function, nothing, x)

    if n == shards * each:
        return one((x, used))
    groups = -(-n // (shards * each))

    def split(x):
        """[n, ...] -> [groups, shards * each, ...], every shard's rows remaining its own."""
        x = x.reshape(shards, n // shards, *x.shape[1:])
        x = jnp.pad(x, [(0, 0), (0, groups * each - n // shards)] + [(0, 0)] * (x.ndim - 2))
        x = jnp.moveaxis(x.reshape(shards, groups, each, *x.shape[2:]), 1, 0)
        return x.reshape(groups, shards * each, *x.shape[3:])

    made = jax.lax.map(one, (split(x), split(used)))
    made = jnp.moveaxis(made.reshape(groups, shards, each, *made.shape[2:]), 0, 1)
    return made.reshape(shards, groups * each, *made.shape[3:])[:, : n // shards].reshape(
        n, *made.shape[3:]
    )


def signal(c: CodecConfig, pixels):
    """uint8 [n, h, w, 3] -> f32, what the encoder reads."""
    if (c.mean, c.std) == ((0.5,) * 3, (0.5,) * 3):
        return to_signal(pixels)  # the same, rounded otherwise
    return standard(pixels, c.mean, c.std)


def encode_ids(codec: Codec, params, pixels):
    """uint8 [n, h, w, 3] -> [n, tokens] int32 below `config.codes`."""
    z = codec.read(params, signal(codec.config, pixels))
    with jax.default_matmul_precision("highest"):
        found = codec.bottleneck(
            params, z, jnp.ones(len(z)), jax.random.split(jax.random.key(0), len(z))
        )
    return to_ids(codec.config, found.codes)


def decode_ids(codec: Codec, params, ids):
    """[n, tokens] int32 -> uint8 [n, h, w, 3]."""
    codes = from_ids(codec.config, ids)
    values = quantise.lookup(codec.config.quantiser, params.get("book", {}), codes)
    return to_pixels(codec.last(params, codec.features(params, values)))


def encode_latents(codec: Codec, params, pixels):
    """uint8 [n, h, w, 3] -> [n, h', w', c] f32: the mean, of a KL codec."""
    return jnp.split(codec.read(params, signal(codec.config, pixels)), 2, axis=-1)[0]


def decode_latents(codec: Codec, params, latents):
    """[n, h', w', c] -> uint8 [n, h, w, 3]."""
    return to_pixels(codec.last(params, codec.features(params, latents)))


def encode(codec: Codec, params, pixels):
    """`encode_ids`, or `encode_latents` of a codec without codes."""
    return (encode_ids if codec.config.codes else encode_latents)(codec, params, pixels)


def decode(codec: Codec, params, made):
    """The inverse of `encode` as far as the codec goes: -> uint8 [n, h, w, 3]."""
    return (decode_ids if codec.config.codes else decode_latents)(codec, params, made)


def flops(c: CodecConfig) -> float:
    """Forward FLOPs of encoder and decoder on one picture: their convolutions, two a multiply-add.

    Norms, attention in the middle and the bottleneck, a few per cent, are left out.
    """

    def level(number: int, first: int, blocks: int) -> float:
        width, places = c.channels * c.multipliers[number], (c.image >> number) ** 2
        skip = 0 if first == width else first * width
        return places * (9 * first * width + skip + 9 * width * width * (2 * blocks - 1))

    widths = [c.channels * m for m in c.multipliers]
    top, last = widths[-1], len(widths) - 1
    ends = 2 * 27 * widths[0] * c.image**2
    middle = c.side**2 * (8 * 9 * top**2 + 2 * 9 * top * c.latent)
    down = sum(level(i, widths[max(i - 1, 0)], c.blocks) for i in range(last + 1))
    up = sum(level(i, widths[min(i + 1, last)], c.blocks + 1) for i in range(last + 1))
    for i in range(last):
        down += 9 * widths[i] ** 2 * (c.image >> (i + 1)) ** 2
        up += 9 * widths[i + 1] ** 2 * (c.image >> i) ** 2
    return 2.0 * (ends + middle + down + up)
