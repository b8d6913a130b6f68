"""The matrix product every layer is made of, with its gradient written out."""

from functools import partial

import jax
import jax.numpy as jnp


def precision(x) -> jax.lax.Precision:
    """How products of x are taken, on every platform: f32 as f32, all else as it comes.

    Left to themselves TPUs round f32 to bf16 before a product, and GPUs to TF32, which is a
    precision that no configuration names. Of bf16 there is only one product.
    """
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x, w, axes: int = 1, dtype: str = ""):
    """Contracts the last `axes` axes of x with the first `axes` of w; [.., d] x [d, f] -> [.., f].

    Derived automatically, the gradient of w comes out transposed and is then turned round, which
    costs XLA on CPU up to twice the product itself. Here it is asked for as w lies.

    Args:
        x: [..., d ...]. w: [d ..., f ...].
        axes: how many axes d stands for (2 for attention's output, from heads and head dimension).
        dtype: of the result where it is not that of x: logits are wanted in f32.
    """
    last, first = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    product = jax.lax.dot_general(
        x, w, ((last, first), ((), ())), precision(x), preferred_element_type=dtype or x.dtype
    )
    return product


def _forward(x, w, axes, dtype):
    return linear(x, w, axes, dtype), (x, w)


def _backward(axes, dtype, saved, g):
    x, w = saved
    g = g.astype(x.dtype)
    lead, out = x.ndim - axes, w.ndim - axes
    theirs, ours = tuple(range(lead, lead + out)), tuple(range(axes, w.ndim))
    batch = tuple(range(lead))

    def product(a, b, axes, dtype):
        return jax.lax.dot_general(
            a, b, (axes, ((), ())), precision(x), preferred_element_type=dtype
        )

    dx = product(g, w, (theirs, ours), x.dtype)
    return dx, product(x, g, (batch, batch), jnp.float32).astype(w.dtype)


linear.defvjp(_forward, _backward)
