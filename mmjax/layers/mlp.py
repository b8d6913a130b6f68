"""SwiGLU, and networks of two layers."""

import flax.linen as nn
import jax

from mmjax.layers.encoder import ACTIVATIONS
from mmjax.layers.linear import linear
from mmjax.layers.tower import Route, through, weights
from mmjax.layers.weight import Layer


class SwiGLU(Layer):
    """down(silu(gate x) * up x) (Llama); f = mlp, one a tower.

    bias: whether all three have one, where there is one tower. activation: in the place of silu, a
    key of ACTIVATIONS.
    """

    mlp: int
    towers: int
    bias: bool = False
    activation: str = "silu"

    @nn.compact
    def __call__(self, x, path: Route | None = None):
        """x [b, l, d] -> [b, l, d]."""
        d = x.shape[-1]
        # Two weights, not one fused: the gradient of a split is a pad and an add on CPU.
        gate = weights(self, self.towers, "gate", (d, self.mlp), ("embed", "mlp"))
        up = weights(self, self.towers, "up", (d, self.mlp), ("embed", "mlp"))
        down = weights(self, self.towers, "down", (self.mlp, d), ("mlp", "embed"))

        def added(name, y):
            return self.with_bias(name, y) if self.bias else y

        def network(product, x, held):
            gate, up, down = held
            opened = ACTIVATIONS[self.activation](added("gate", product(x, gate)))
            return added("down", product(opened * added("up", product(x, up)), down))

        return through(self.rules, path, network, x, (gate, up, down))


class Unbiased(Layer):
    """Linear, activation, linear, without biases (Flamingo); `activation` of ACTIVATIONS."""

    mlp: int
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x):
        """[..., d] -> [..., d]."""
        d = x.shape[-1]
        up = self.weight("up", (d, self.mlp), ("embed", "mlp"))
        down = self.weight("down", (self.mlp, d), ("mlp", "embed"))
        return linear(ACTIVATIONS[self.activation](linear(x, up)), down)


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
