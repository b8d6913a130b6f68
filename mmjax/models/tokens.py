"""What every family that reads and writes tokens has: a table, an output matrix, their loss."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.layers.weight import Layer, fan_in_of, normal
from mmjax.losses import Term, Terms, chunk_count, token_loss

CHUNK_TOKENS = 512  # tokens whose logits exist at one time in the training loss


class Embed(Layer):
    """Token embedding, [v, d]."""

    size: int
    width: int

    @nn.compact
    def __call__(self, tokens):
        """[b, l] int32 -> [b, l, d]."""
        shape = (self.size, self.width)
        start = partial(normal, scale=1.0)
        # Looked up in f32: the gradient adds up all positions of an id, which bf16 cannot count.
        table = self.weight("table", shape, ("vocab", "embed"), start, "float32")
        return jnp.take(table, tokens, axis=0).astype(self.dtype)


class Head(Layer):
    """The matrix from decoder output to logits, [d, v]; multiplied inside the fused loss."""

    width: int
    size: int

    @nn.compact
    def __call__(self):
        """-> [d, v]."""
        shape = (self.width, self.size)
        return self.weight("w", shape, ("embed", "vocab"), fan_in_of(self.width))


class Column(Layer):
    """One id's column of logits, apart from the matrix of the others; [d]."""

    width: int

    @nn.compact
    def __call__(self):
        """-> [d]."""
        return self.weight("w", (self.width,), ("embed",), fan_in_of(self.width))


def token_terms(
    name: str, groups: Sequence[str], hidden, head, batch: Batch, weight, z_weight: float
) -> Terms:
    """Next-token loss, and what is logged beside it for each group of tokens.

    Args:
        name: of the loss term. groups: names of the g groups.
        hidden: [b, l, d] decoder outputs. head: [d, v]. batch: has the tokens.
        weight: [b, l - 1, g], of predicting token j + 1 from position j.
        z_weight: coefficient of (log Z)^2.
    """
    b, length = batch.tokens.shape
    # Position j predicts token j + 1; the last one predicts nothing and is kept for the shape.
    targets = jnp.roll(batch.tokens, -1, axis=1)
    weight = jnp.pad(weight, ((0, 0), (0, 1), (0, 0)))
    chunks = chunk_count(b, length, CHUNK_TOKENS)
    loss, sums = token_loss(hidden, head, targets, weight, z_weight, chunks)
    sums, counts = jax.lax.stop_gradient((sums, weight.sum((0, 1))))
    terms = {name: Term(loss, weight.sum())}
    for i, group in enumerate(groups):
        for entry, value in (
            ("nll", sums.nll),
            ("accuracy", sums.hit),
            ("log_z_squared", sums.z),
            ("logit_squared", sums.logit),
        ):
            terms[f"{group}/{entry}"] = Term(value[i], counts[i])
    return terms
