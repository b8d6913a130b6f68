"""Where weights come from: one base class that adds one method and overrides nothing."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.error import UserError
from mmjax.mesh import Rules

# What is kept in which precision: parameters f32; activations in the configured dtype (bf16 on
# TPU and GPU, f32 on CPU); softmax, norms, losses and logits f32.
PARAM_DTYPE = jnp.float32
DTYPES = ("float32", "bfloat16")


def check_dtype(dtype: str, at: str) -> None:
    """Checks the precision of activations that the configuration at `at` names.

    Raises:
        UserError: if it is unknown, or float16, whose gradients vanish without loss scaling.
    """
    if dtype == "float16":
        raise UserError(
            f"{at}.dtype='float16' needs loss scaling, which mmjax does not do; give 'bfloat16', "
            f"which has the range of float32"
        )
    if dtype not in DTYPES:
        raise UserError(f"{at}.dtype={dtype!r} is unknown; have: {', '.join(DTYPES)}")


def normal(key, shape, dtype, scale: float):
    """Normal initial values of standard deviation `scale`."""
    return scale * jax.random.normal(key, shape, dtype)


def fan_in(key, shape, dtype):
    """Normal initial values of variance 1 / (size of the first axis), for [in, out] weights."""
    return normal(key, shape, dtype, shape[0] ** -0.5)


def fan_in_of(size: int):
    """Initialiser of variance 1 / size, for weights whose input is not just the first axis."""
    return partial(normal, scale=size**-0.5)


def zeros(key, shape, dtype):
    """Initial zeros: a branch that starts as the identity."""
    del key
    return jnp.zeros(shape, dtype)


def ones(key, shape, dtype):
    """Initial ones, for scales."""
    del key
    return jnp.ones(shape, dtype)


class Layer(nn.Module):
    """A module whose weights name their logical axes.

    Attributes:
        rules: how logical axes lie on the mesh.
        dtype: precision of activations, "float32" or "bfloat16".
    """

    rules: Rules
    dtype: str

    def weight(self, name: str, shape, axes, init=fan_in, dtype: str = ""):
        """A parameter in f32, laid out by `axes` (logical names), cast to the compute dtype.

        dtype: what to cast it to instead. What meets many positions other than by a matrix product
            (tables, biases, scales, gates) stays in float32: its gradient is a sum over positions,
            taken in the precision of what was broadcast or looked up. Products sum in f32 anyway.
        """
        boxed = nn.with_partitioning(init, tuple(self.rules.spec(*axes)))
        value: jax.Array = self.param(name, boxed, shape, PARAM_DTYPE)  # type: ignore[assignment]
        return value.astype(dtype or self.dtype)

    def with_bias(self, name: str, x, lead: int = 2):
        """What a matrix made, x, plus its bias, kept as one axis: it is no matrix to the optimizer.

        lead: axes of x that are positions.
        """
        size = math.prod(x.shape[lead:])
        bias = self.weight(f"{name}_bias", (size,), (None,), zeros, "float32")
        return plus(x, bias.reshape((1,) * lead + x.shape[lead:]))


def plus(x, *others):
    """x + others, summed in f32 and rounded once to the precision of x.

    So the gradient of what is broadcast is a sum in f32, as long as it comes in f32.
    """
    total = x.astype(jnp.float32)
    for other in others:
        total = total + other.astype(jnp.float32)
    return total.astype(x.dtype)


def repeat(x, count: int, axis: int):
    """`jnp.repeat`, with the gradient's sum over copies in f32."""
    if count == 1:
        return x
    return jnp.repeat(x.astype(jnp.float32), count, axis=axis).astype(x.dtype)


def gather(x, at, axis: int):
    """`jnp.take_along_axis`, with the gradient's sum over repeated indexes in f32."""
    wide = x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jnp.take_along_axis(wide, at, axis=axis).astype(x.dtype)


def specs_of(boxed_init):
    """A function key -> boxed params; returns its tree of PartitionSpecs, computing nothing."""
    return nn.get_partition_spec(jax.eval_shape(boxed_init, jax.random.key(0)))


def unboxed(boxed_init):
    """The same function returning plain nested dicts of arrays."""
    return lambda key: nn.unbox(boxed_init(key))


def pieces(layers: Mapping[str, nn.Module]) -> Callable[[str], Callable]:
    """Name -> the function (params, ...) that applies the layer of that name with params[name]."""

    def piece(name: str) -> Callable:
        return lambda params, *args, **kw: layers[name].apply({"params": params[name]}, *args, **kw)

    return piece
