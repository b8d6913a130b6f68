"""The one decoder: what every family that reads and writes sequences is made of."""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.error import UserError
from mmjax.layers.attention import KV, Attention, write
from mmjax.layers.dropout import dropout
from mmjax.layers.encoder import ACTIVATIONS
from mmjax.layers.mlp import SwiGLU
from mmjax.layers.norm import rms
from mmjax.layers.position import rope_angles
from mmjax.layers.tower import Route, route
from mmjax.layers.weight import Layer, check_dtype

BIASES = ("attention", "mlp")
UNTIE = ("qkv", "o", "qk_norm", "attn_norm", "ffn", "ffn_norm", "final_norm")


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and options of the decoder.

    Attributes:
        width: d. depth: n layers. heads: h query heads. kv_heads: g, divides h. mlp: f.
        qk_norm: LayerNorm on queries and keys.
        norm: "pre" normalises what a branch reads, "post" what it returns (Chameleon 34B).
        dropout: probability after attention and after the MLP.
        theta: base of the rotary frequencies.
        remat: recompute a block's activations in the backward pass.
        unroll: layers a compiled loop takes at a time; `depth` is no loop, faster and bigger code.
        dtype: precision of activations, "float32" (multiplied as such on every platform) or
            "bfloat16"; sums over positions are f32 in both.
        towers: 1, where all weights are shared; 2, text and all else; or one more for each modality
            above IMAGE in the batch.
        untie: what every tower has of its own, any of UNTIE (Mixture-of-Transformers).
        untied_layers: in which layers, counted from 0, in ascending order; () is all.
        grouped: sort tokens by tower, so that each is multiplied by its own tower's weights only;
            or multiply all by all towers' and select. The results are equal to rounding.
        eps: under the root of every RMSNorm. head_norms: QK-norm has weights of each head.
        rope_scaling: of the rotary frequencies, see `layers.position.scaled`.
        head: width of one head; 0 is width / heads.
        biases: which matrices have biases, any of BIASES; with one tower only.
        activation: of the MLP's gate, a key of `layers.encoder.ACTIVATIONS`.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp: int
    qk_norm: bool
    norm: str
    dropout: float
    theta: float
    remat: bool
    unroll: int
    dtype: str
    towers: int
    untie: tuple[str, ...]
    untied_layers: tuple[int, ...]
    grouped: bool
    eps: float = 1e-5
    head_norms: bool = False
    rope_scaling: tuple[float, ...] = ()
    head: int = 0
    biases: tuple[str, ...] = ()
    activation: str = "silu"

    def __post_init__(self):
        """Checks fields by themselves and against each other."""
        for name in ("width", "depth", "heads", "kv_heads", "mlp", "unroll"):
            if getattr(self, name) < 1:
                raise UserError(f"decoder.{name}={getattr(self, name)} must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"decoder.dropout={self.dropout} must be at least 0 and below 1")
        check_dtype(self.dtype, "decoder")
        if self.head_dim % 2 or self.head < 0 or (not self.head and self.width % self.heads):
            near = self.heads * max(self.head_dim // 2, 1) * 2
            raise UserError(
                f"decoder.width={self.width} over decoder.heads={self.heads} must be an even "
                f"number (the head dimension), or decoder.head={self.head}, if that is not 0; try "
                f"width={near}"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"decoder.kv_heads={self.kv_heads} must divide decoder.heads={self.heads}"
            )
        for name, have in (("norm", ("pre", "post")), ("activation", tuple(ACTIVATIONS))):
            if (value := getattr(self, name)) not in have:
                raise UserError(f"decoder.{name}={value!r} is unknown; have: {', '.join(have)}")
        if len(self.rope_scaling) not in (0, 1, 4) or any(x <= 0 for x in self.rope_scaling):
            raise UserError(
                f"decoder.rope_scaling={self.rope_scaling} must be (), (factor,) or (factor, low, "
                f"high, length), all above 0"
            )
        if not set(self.biases) <= set(BIASES) or (self.biases and self.towers > 1):
            raise UserError(
                f"decoder.biases={self.biases} must be some of {', '.join(BIASES)}, and none with "
                f"decoder.towers={self.towers} above 1"
            )
        self._check_towers()

    def _check_towers(self) -> None:
        """Checks what is untied."""
        if unknown := [part for part in self.untie if part not in UNTIE]:
            raise UserError(f"decoder.untie has {unknown[0]!r}; have: {', '.join(UNTIE)}")
        if self.towers < 1 or (self.towers > 1) != bool(self.untie):
            raise UserError(
                f"decoder.towers={self.towers} with decoder.untie={self.untie}; give 1 tower with "
                f"untie=(), or 2 (text and images) or more with what they do not share"
            )
        if "qk_norm" in self.untie and not self.qk_norm:
            raise UserError("decoder.untie has 'qk_norm', but decoder.qk_norm=False; take it out")
        layers = self.untied_layers
        fits = list(layers) == sorted(set(layers)) and set(layers) <= set(range(self.depth))
        if not fits or (layers and not set(self.untie) - {"final_norm"}):
            raise UserError(
                f"decoder.untied_layers={layers} must ascend within 0 ... {self.depth - 1}, and "
                f"decoder.untie={self.untie} say what is untied in them; () is all layers"
            )
        if self.grouped and not {"qkv", "o", "ffn"} & set(self.untie):
            raise UserError(
                f"decoder.grouped=True, but decoder.untie={self.untie} has none of qkv, o, ffn to "
                f"group; use grouped=False"
            )

    def count(self, part: str) -> int:
        """How many there are of a part of UNTIE."""
        return self.towers if part in self.untie else 1

    @property
    def runs(self) -> list[tuple[str, range, bool]]:
        """(name, layers, untied) of each run of equal layers; `blocks` where all are equal."""
        chosen = self.untied_layers or range(self.depth)
        equal = [list(run) for _, run in groupby(range(self.depth), lambda n: n in chosen)]
        return [
            (f"blocks_{i}" if len(equal) > 1 else "blocks", range(r[0], r[-1] + 1), r[0] in chosen)
            for i, r in enumerate(equal)
        ]

    @property
    def head_dim(self) -> int:
        """Width of one head, k."""
        return self.head or self.width // self.heads


class Block(Layer):
    """Attention and MLP, each in a residual branch."""

    c: DecoderConfig

    @nn.compact
    def __call__(self, x, cache, layer, mask, angles, columns, keys, path: Route | None):
        """x [b, l, d], a layer's cache or None, its number -> (x, (new to it, largest score))."""
        c = self.c
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, layer)))(keys)

        def branch(name, x, function, key_column):
            towers = c.count({"attention": "attn_norm", "mlp": "ffn_norm"}[name])

            def norm(y):
                return rms(self, f"{name}_norm", y, towers, path, c.eps)

            y, extra = function(norm(x) if c.norm == "pre" else x)
            y = norm(y) if c.norm == "post" else y
            y = dropout(y, c.dropout, None if keys is None else keys[:, key_column])
            return self.rules.constrain(x + y, "batch", "length", None), extra

        attention = Attention(
            self.rules, self.dtype, c.heads, c.kv_heads, c.head_dim, c.qk_norm, c.head_norms,
            c.count("qkv"), c.count("qk_norm"), c.count("o"), "attention" in c.biases,
            name="attention",
        )  # fmt: skip
        mlp = SwiGLU(
            self.rules, self.dtype, c.mlp, c.count("ffn"), "mlp" in c.biases, c.activation,
            name="mlp",
        )  # fmt: skip

        def attend(y):
            y, new, peak = attention(y, mask, angles, cache, columns, path)
            return y, (new if cache is not None else None, peak)

        x, kept = branch("attention", x, attend, 0)
        x, _ = branch("mlp", x, lambda y: (mlp(y, path), None), 1)
        return x, kept


class Watch(NamedTuple):
    """What tells that a run is about to diverge (Chameleon, section 2.3).

    Attributes:
        peak: [n] f32, the largest attention score of each layer, q k / sqrt(k).
        norm: [b, l] f32, root mean square of the last layer's output, before the final norm.
    """

    peak: jax.Array
    norm: jax.Array


class Decoder(Layer):
    """A stack of blocks and a final norm; parameters of all layers lie stacked on axis 0."""

    c: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x,
        mask,
        position,
        cache: KV | None = None,
        columns=None,
        keys=None,
        watch: bool = False,
        tower=None,
    ):
        """Runs the stack.

        Args:
            x: [b, l, d] embedded inputs.
            mask: [b or 1, l, m] bool; m = l without a cache.
            position: [b, l] int32 for RoPE.
            cache: keys and values of all layers, [n, b, g, m, k] each, or None.
            columns: [b, l] int32, where in the cache these positions are written.
            keys: [b] one dropout key a row, or None to drop nothing.
            watch: return a `Watch` too.
            tower: [b, l] int32, modality of every position, of which those beyond the last tower go
                through the last; None sends all through tower 0.

        Returns:
            ([b, l, d] normalised output, cache), with `watch` (.., .., Watch).
        """
        c = self.c
        x = self.rules.constrain(x.astype(c.dtype), "batch", "length", None)
        angles = rope_angles(position, c.head_dim, c.theta, c.rope_scaling)
        path = None
        if tower is not None and c.towers > 1:
            path = route(self.rules, jnp.minimum(tower, c.towers - 1), c.towers, c.grouped)
        found = []
        for name, layers, untied in c.runs:
            stack = self.stack(name, len(layers), untied)
            held = cache
            if cache is not None and len(layers) < c.depth:
                held = KV(*(half[layers[0] : layers[-1] + 1] for half in cache))
            number = jnp.arange(layers[0], layers[-1] + 1)
            x, kept = stack(x, held, number, mask, angles, columns, keys, path)
            found.append(kept)
        new, peak = jax.tree.map(lambda *runs: jnp.concatenate(runs), *found)
        if cache is not None:
            # XLA writes in place what is provably read no more, so the columns are made to depend
            # on the output: what gave no number is not kept. Without it the cache is copied twice.
            columns = jnp.where(jnp.isnan(x[:, :, 0]), cache.keys.shape[3], columns)
            cache = jax.vmap(write, (0, 0, None))(cache, new, columns)
        y = rms(self, "final_norm", x, c.count("final_norm"), path, c.eps)
        if not watch:
            return y, cache
        last = jax.lax.stop_gradient(x.astype(jnp.float32))
        return y, cache, Watch(peak, jnp.sqrt(jnp.mean(last**2, axis=-1)))

    def stack(self, name: str, depth: int, untied: bool) -> nn.Module:
        """A scan over equal layers."""
        shared = replace(self.c, towers=1, untie=(), untied_layers=(), grouped=False)
        c = self.c if untied else shared
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        scan = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, *(nn.broadcast,) * 5),
            out_axes=0,
            length=depth,
            unroll=min(c.unroll, depth),
            metadata_params={nn.PARTITION_NAME: self.rules.layers},
        )
        return scan(self.rules, self.dtype, c, name=name)


def empty_cache(c: DecoderConfig, batch: int, columns: int) -> KV:
    """A cache of zeros for `batch` rows of `columns` positions."""
    shape = (c.depth, batch, c.kv_heads, columns, c.head_dim)
    return KV(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))
