"""SwiGLU and the small two-layer network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.weight import Layer


class SwiGLU(Layer):
    """down(silu(gate x) * up x), without biases (Llama); f = mlp."""

    mlp: int

    @nn.compact
    def __call__(self, x):
        """x [b, l, d] -> [b, l, d]."""
        d = x.shape[-1]
        # Two weights, not one fused: the gradient of a split is a pad and an add on CPU.
        gate = jnp.einsum("bld,df->blf", x, self.weight("gate", (d, self.mlp), ("embed", "mlp")))
        up = jnp.einsum("bld,df->blf", x, self.weight("up", (d, self.mlp), ("embed", "mlp")))
        down = self.weight("down", (self.mlp, d), ("mlp", "embed"))
        return jnp.einsum("blf,fd->bld", jax.nn.silu(gate) * up, down)


class TwoLayer(Layer):
    """Linear, SiLU, linear: embeds features of the noise level."""

    width: int

    @nn.compact
    def __call__(self, x):
        """x [..., f] f32 -> [..., width]."""
        x = x.astype(self.dtype)
        hidden = self.weight("first", (x.shape[-1], self.width), (None, "embed"))
        x = jax.nn.silu(jnp.einsum("...f,fd->...d", x, hidden))
        return jnp.einsum(
            "...d,de->...e", x, self.weight("second", (self.width,) * 2, ("embed", None))
        )
