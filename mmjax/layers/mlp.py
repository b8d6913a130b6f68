"""SwiGLU and the small two-layer network."""

import flax.linen as nn
import jax

from mmjax.layers.linear import linear
from mmjax.layers.weight import Layer


class SwiGLU(Layer):
    """down(silu(gate x) * up x), without biases (Llama); f = mlp."""

    mlp: int

    @nn.compact
    def __call__(self, x):
        """x [b, l, d] -> [b, l, d]."""
        d = x.shape[-1]
        # Two weights, not one fused: the gradient of a split is a pad and an add on CPU.
        gate = linear(x, self.weight("gate", (d, self.mlp), ("embed", "mlp")))
        up = linear(x, self.weight("up", (d, self.mlp), ("embed", "mlp")))
        down = self.weight("down", (self.mlp, d), ("mlp", "embed"))
        return linear(jax.nn.silu(gate) * up, down)


class TwoLayer(Layer):
    """Linear, SiLU, linear: embeds features of the noise level."""

    width: int

    @nn.compact
    def __call__(self, x):
        """x [..., f] f32 -> [..., width]."""
        x = x.astype(self.dtype)
        hidden = self.weight("first", (x.shape[-1], self.width), (None, "embed"))
        x = jax.nn.silu(linear(x, hidden))
        return linear(x, self.weight("second", (self.width,) * 2, ("embed", None)))
