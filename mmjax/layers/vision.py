"""Pictures as sequences: the Vision Transformer, with the variants CLIP and SigLIP made of it."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax import flops
from mmjax.error import UserError
from mmjax.layers.encoder import Encoder, EncoderConfig, MultiHead, Perceptron, affine, norm
from mmjax.layers.linear import linear
from mmjax.layers.patch import patchify
from mmjax.layers.weight import Layer, gather, normal, plus

POOLS = ("token", "mean", "attention", "none")
POSITIONS = ("learned", "sincos")


@dataclass(frozen=True)
class VisionConfig:
    """Shape of a vision tower.

    Attributes:
        encoder: its blocks. image: side of a picture in pixels. patch: side of a patch.
        pool: what stands for the whole picture: "token" (a class token, CLIP and the first ViT),
            "mean" of all positions, "attention" of one learned query (SigLIP's MAP head), or
            "none": all positions as they are.
        positions: "learned", or "sincos" in two dimensions (MoCo v3).
        patch_bias: whether patches are embedded with a bias. pre_norm: a norm before the blocks
            (CLIP). nudge: added to the size of another grid before positions are brought to it
            (IDEFICS adds 0.1, which moves what is read). crop: of a side that `patch` does not
            divide the rest is left out, as by a convolution without padding (imported towers).
    """

    encoder: EncoderConfig
    image: int
    patch: int
    pool: str
    positions: str
    patch_bias: bool
    pre_norm: bool
    nudge: float = 0.0
    crop: bool = False

    def __post_init__(self):
        """Checks fields against each other."""
        if not 1 <= self.patch <= self.image or (self.image % self.patch and not self.crop):
            raise UserError(f"vision.patch={self.patch} must divide vision.image={self.image}")
        if self.pool not in POOLS:
            raise UserError(f"vision.pool={self.pool!r} is unknown; have: {', '.join(POOLS)}")
        if self.positions not in POSITIONS:
            have = ", ".join(POSITIONS)
            raise UserError(f"vision.positions={self.positions!r} is unknown; have: {have}")
        if self.positions == "sincos" and self.encoder.width % 4:
            raise UserError(
                f"vision.positions='sincos' needs a width that 4 divides, not {self.encoder.width}"
            )

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image // self.patch

    @property
    def length(self) -> int:
        """Positions of a picture, its class token included."""
        return self.side**2 + (self.pool == "token")

    def left_out(self, select: str) -> int:
        """First positions that language models do not see: of "patches" the class token's.

        Of "rest" the first, whatever it is: Hugging Face's LLaVA leaves it out of a tower that has
        no class token too.
        """
        return int(select == "rest" or (select == "patches" and self.pool == "token"))

    @property
    def flops(self) -> float:
        """Forward FLOPs a picture."""
        e = self.encoder
        patches = 2 * self.side**2 * self.patch**2 * 3 * e.width
        return patches + flops.encoder(e.width, e.depth, e.mlp, self.length)


def standard(pixels, mean: tuple[float, ...], std: tuple[float, ...]):
    """uint8 [n, h, w, 3] -> f32, each channel in [0, 1] less its mean, over its deviation."""
    centre, scale = (jnp.array(x, jnp.float32)[None, None, None] for x in (mean, std))
    return (pixels.astype(jnp.float32) / 255.0 - centre) / scale


def sincos(grid: tuple[int, int], width: int) -> np.ndarray:
    """[rows * columns, width] f32: sin and cos of x, then of y (MoCo v3, arXiv 2104.02057).

    Frequencies go from 1 to 1e-4, both reached: the exponent's divisor is d / 4 - 1 (section 5).
    """
    y, x = np.meshgrid(*(np.arange(size) for size in grid), indexing="ij")
    omega = 1e-4 ** (np.arange(width // 4) / (width // 4 - 1))
    angles = [np.outer(at.ravel(), omega) for at in (x, y)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def bicubic(old: int, new: int, nudge: float = 0.0) -> np.ndarray:
    """[new, old] f64: what resizes an axis as torch's `interpolate(mode="bicubic")` does.

    Cubic convolution with a = -0.75, half-pixel centres, edges repeated, no smoothing; that of
    `jax.image.resize` has a = -0.5. nudge: torch was asked for the factor (new + nudge) / old,
    which it reads by even where the size is rounded down to new.
    """
    a = -0.75

    def kernel(t):
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        return np.where(t <= 1, near, np.where(t < 2, a * (t**3 - 5 * t**2 + 8 * t - 4), 0.0))

    centre = (np.arange(new) + 0.5) * old / (new + nudge) - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((new, old))
    for m in range(-1, 3):
        column = np.clip(first + m, 0, old - 1)
        np.add.at(matrix, (np.arange(new), column), kernel(abs(centre - (first + m))))
    return matrix


def resized(table, old: int, new: tuple[int, int], nudge: float = 0.0):
    """Learned positions of a square grid for another grid, bicubically.

    table: [old^2 or 1 + old^2, d], a class token's row first. new: rows and columns of patches.
    nudge: see `bicubic`.
    """
    extra = len(table) - old**2
    grid = jnp.asarray(table)[extra:].astype(jnp.float32).reshape(old, old, -1)
    tall, wide = (jnp.asarray(bicubic(old, size, nudge), jnp.float32) for size in new)
    grid = jnp.einsum("yh,xw,hwd->yxd", tall, wide, grid, precision="highest")
    grid = grid.reshape(new[0] * new[1], -1).astype(table.dtype)
    return jnp.concatenate([jnp.asarray(table)[:extra], grid])


class Vision(Layer):
    """The tower: patches, positions, blocks, and one vector for the whole."""

    c: VisionConfig

    @nn.compact
    def __call__(self, signal):
        """[n, h, w, 3] -> (pooled [n, d], see `pooled`, and hidden [1 + layers, n, l, d]).

        hidden: what the blocks read, and what each of them returns, before any norm at the end.
        """
        c, e = self.c, self.c.encoder
        d, size = e.width, c.patch * c.patch * 3
        embed = partial(normal, scale=size**-0.5)
        grid = signal.shape[1] // c.patch, signal.shape[2] // c.patch
        whole = signal[:, : grid[0] * c.patch, : grid[1] * c.patch]
        patches = patchify(whole.astype(self.dtype), c.patch)
        if c.patch_bias:
            x = affine(self, "patch", patches, (size, d), (None, "embed"), embed)
        else:
            x = linear(patches, self.weight("patch", (size, d), (None, "embed"), embed))
        if c.pool == "token":
            start = partial(normal, scale=d**-0.5)
            token = self.weight("token", (d,), (None,), start, "float32")
            first = jnp.broadcast_to(token[None, None], (len(x), 1, d)).astype(x.dtype)
            x = jnp.concatenate([first, x], axis=1)
        x = plus(x, self.places(d, grid)[None])
        x = norm(self, "pre_norm", x, e.eps) if c.pre_norm else x
        mask = jnp.ones((1, x.shape[1], x.shape[1]), bool)
        y, each = Encoder(self.rules, self.dtype, e, name="encoder")(x, mask)
        return self.pooled(y), jnp.concatenate([x[None], each])

    def places(self, d: int, grid: tuple[int, int]):
        """[l, d], of every position; learned ones of another grid than theirs are resized."""
        c = self.c
        if c.positions == "learned":
            scale = partial(normal, scale=d**-0.5)
            table = self.weight("position", (c.length, d), (None, None), scale, "float32")
            own = grid == (c.side, c.side)
            return table if own else resized(table, c.side, grid, c.nudge)
        fixed = sincos(grid, d)
        return jnp.asarray(np.pad(fixed, ((c.length - c.side**2, 0), (0, 0))))

    def pooled(self, x):
        """[n, l, d] -> [n, d], or with "none" [n, l, d]."""
        c, e = self.c, self.c.encoder
        if c.pool == "token":
            return norm(self, "post_norm", x[:, 0], e.eps)
        x = norm(self, "post_norm", x, e.eps)
        if c.pool == "none":
            return x
        if c.pool == "mean":
            return x.mean(1)
        at = (self.rules, self.dtype)
        start = partial(normal, scale=0.02)
        probe = self.weight("probe", (1, e.width), (None, None), start, "float32")
        probe = jnp.broadcast_to(probe[None], (len(x), *probe.shape)).astype(x.dtype)
        mask = jnp.ones((1, 1, x.shape[1]), bool)
        y = MultiHead(*at, e.heads, e.width**-0.5, name="pool")(probe, x, mask)
        return (y + Perceptron(*at, e, name="pool_mlp")(norm(self, "pool_norm", y, e.eps)))[:, 0]


@dataclass(frozen=True)
class TextConfig:
    """Shape of a text tower.

    Attributes:
        encoder: its blocks. length: most tokens of a text.
        causal: whether a token sees only those before it (CLIP) or all (SigLIP).
        pool: what stands for the whole text: "end", its first EOS (CLIP), "highest", its highest id
            (the first CLIPs, whose EOS is that), or "last", the last position, padding or not
            (SigLIP). Without an EOS, the first position stands for it.
    """

    encoder: EncoderConfig
    length: int
    causal: bool
    pool: str

    def __post_init__(self):
        """Checks the pool."""
        if self.pool not in ("end", "highest", "last"):
            raise UserError(f"text.pool={self.pool!r} is unknown; have: end, highest, last")


class TextTower(Layer):
    """Tokens, positions, blocks, and one vector for the whole."""

    c: TextConfig
    size: int  # v
    eos: int

    @nn.compact
    def __call__(self, tokens, held=None):
        """[n, l] int32 -> (pooled [n, d], hidden [1 + layers, n, l, d]); see `Vision`.

        held: [n, l] bool, which are no padding, where padding is to be seen by nobody.
        """
        c, e, length = self.c, self.c.encoder, tokens.shape[1]
        table = self.weight(
            "table", (self.size, e.width), ("vocab", None), partial(normal, scale=0.02), "float32"
        )
        place = self.weight(
            "position", (c.length, e.width), (None, None), partial(normal, scale=0.01), "float32"
        )
        x = (table[tokens] + place[None, :length]).astype(self.dtype)
        mask = jnp.ones((1, length, length), bool)
        mask = jnp.tril(mask) if c.causal else mask
        mask = mask if held is None else mask & held[:, None]
        y, each = Encoder(self.rules, self.dtype, e, name="encoder")(x, mask)
        last = jnp.full((len(tokens),), length - 1)
        if c.pool == "end":
            last = (tokens == self.eos).argmax(1)
        elif c.pool == "highest":
            last = tokens.argmax(1)
        y = norm(self, "final_norm", y, e.eps)
        pooled = gather(y, last[:, None, None], axis=1)[:, 0]
        return pooled, jnp.concatenate([x[None], each])
