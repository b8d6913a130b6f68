"""Floating-point operations a model needs, counted from shapes, and what the hardware could do.

Never from the compiler's cost analysis, which counts the body of a loop over layers once.
A multiply-add is two operations; the backward pass is twice the forward; recomputation by
rematerialisation does not count. Attention counts the pairs that the mask allows.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Batch

# Published peak of one device, FLOP/s in bf16, by jax's device_kind.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
}


def decoder(width, depth, heads, kv_heads, head_dim, mlp, tokens, pairs) -> float:
    """Forward FLOPs of the decoder's layers over `tokens` positions and `pairs` (query, key)."""
    projections = 2 * width * head_dim * (heads + 2 * kv_heads) + 2 * heads * head_dim * width
    return depth * (tokens * (projections + 6 * width * mlp) + 4 * pairs * heads * head_dim)


def encoder(width, depth, mlp, length) -> float:
    """Forward FLOPs of an encoder's layers over one sequence, every position seeing all."""
    return depth * (length * (8 * width**2 + 4 * width * mlp) + 4 * length**2 * width)


def mixed_counts(batch: Batch) -> tuple[float, float]:
    """Host batch -> (positions that hold a document, pairs the mixed mask allows)."""
    segment, image = np.asarray(batch.segment), np.asarray(batch.image)
    pairs = 0.0
    for row, pictures in zip(segment, image, strict=True):
        n = np.bincount(row)[1:].astype(float)
        p = np.bincount(pictures)[1:].astype(float)
        pairs += (n * (n + 1) / 2).sum() + (p * (p - 1) / 2).sum()
    return float((segment > 0).sum()), pairs


def causal_counts(batch: Batch) -> tuple[float, float]:
    """Host batch -> (positions that hold a document, pairs the causal mask allows)."""
    rows = [np.bincount(row)[1:].astype(float) for row in np.asarray(batch.segment)]
    pairs = sum(float((n * (n + 1) / 2).sum()) for n in rows)
    return float((np.asarray(batch.segment) > 0).sum()), pairs


def patch_counts(batch: Batch, both: bool) -> tuple[float, float]:
    """Host batch -> (patches, pairs in their rows of the mask); `both`: in pictures both ways."""
    rows, columns = np.nonzero(np.asarray(batch.image))
    segment = np.asarray(batch.segment)
    first = (segment[rows] == segment[rows, columns][:, None]).argmax(axis=1)
    pairs = float((columns - first + 1).sum())
    for row in np.asarray(batch.image):
        p = np.bincount(row)[1:].astype(float)
        pairs += float((p * (p - 1) / 2).sum()) * both
    return float(len(rows)), pairs


def parted(batch: Batch, registers: tuple[int, ...]) -> float:
    """Host batch -> pairs of the counts above that registers part, see `mmjax.batch.unparted`."""
    if not registers:
        return 0.0
    mark = np.isin(batch.tokens, registers)
    rows, columns = np.nonzero((np.asarray(batch.segment) > 0) & ~mark & (batch.position > 0))
    document = np.asarray(batch.segment)[rows, columns]
    passed = np.cumsum(mark, axis=1)[rows, columns]

    def squares(*labels) -> float:
        return float((np.unique(np.stack(labels), axis=1, return_counts=True)[1] ** 2.0).sum())

    return (squares(rows, document) - squares(rows, document, passed)) / 2


def pictures(batch: Batch) -> float:
    """Host batch -> pictures in it."""
    return float(np.asarray(batch.image).max(axis=1).sum())


def peak(devices) -> float | None:
    """FLOP/s of all devices together; None where the kind of device is not in the table.

    On CPU there is no published number: it is what a large f32 matrix product reaches here, now.
    """
    kind = devices[0].device_kind
    if devices[0].platform != "cpu":
        return PEAK[kind] * len(devices) if kind in PEAK else None
    n = 1024
    x = jax.device_put(jnp.ones((n, n), jnp.float32), devices[0])
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
