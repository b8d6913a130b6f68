"""The halves of the U-Net: shapes, what each part of the input changes, and their FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import unet
from mmjax.mesh import Rules, make_mesh

AT = (Rules(make_mesh(1, 1, 1, jax.devices()[:1])), "float32")


def halves(patch: int, side: int = 8, channels: int = 6, width: int = 10):
    """(pictures, times, a function of both and an offset of the decoder's output)."""
    down, up = unet.Down(*AT, channels, patch, width), unet.Up(*AT, channels, patch, 3)
    x, time = jax.random.normal(jax.random.key(0), (2, side, side, 3)), jnp.ones((2, 5))
    (patches, skips), first = down.init_with_output(jax.random.key(1), x, time)
    second = up.init(jax.random.key(2), patches, time, skips)
    params = jax.tree.map(lambda w: w, second["params"])
    out = params["out"].value
    shape = out.shape
    params["out"] = params["out"].replace_boxed(jax.random.normal(jax.random.key(3), shape))

    def run(x, time, shift=0.0):
        patches, skips = down.apply(first, x, time)
        return patches, up.apply({"params": params}, patches + shift, time, skips)

    zero = up.apply(second, patches, time, skips)
    return x, time, run, zero


@pytest.mark.parametrize("patch", [2, 4])
def test_shapes_and_what_each_input_changes(patch):
    x, time, run, zero = halves(patch)
    patches, y = run(x, time)
    assert patches.shape == (2, (8 // patch) ** 2, 10) and y.shape == x.shape
    assert (zero == 0).all()  # it starts at zero
    for other in (run(x + 1.0, time)[1], run(x, 2 * time)[1], run(x, time, 1.0)[1]):
        assert np.abs(np.asarray(other - y)).max() > 1e-3


def test_patches_lie_in_raster_order_and_see_their_neighbourhood():
    x, time, run, _ = halves(2, side=16)
    for row, column in [(1, 1), (1, 6), (6, 1), (6, 6)]:
        moved = x.at[0, 2 * row, 2 * column].add(3.0)
        change = np.abs(np.asarray(run(moved, time)[0] - run(x, time)[0])).max(-1)
        most = np.array(np.unravel_index(change[0].argmax(), (8, 8)))
        assert np.abs(most - [row, column]).max() <= 1 and change[1].max() == 0


def test_the_second_half_sees_what_the_first_saw():
    """Detail finer than a patch goes around the decoder."""
    x, time, run, _ = halves(2)
    patches, _ = run(x, time)
    moved = x.at[0, 3, 3].add(1.0)
    there, other = run(moved, time)
    around = run(x, time, there - patches)[1]  # the decoder's part of the change alone
    assert np.abs(np.asarray(other - around)).max() > 1e-3


def test_levels_and_flops():
    assert [unet.levels(p) for p in (1, 2, 4, 8)] == [0, 1, 2, 3]
    small, large = (unet.flops(c, 2, 16, (8, 8, 3)) for c in (4, 8))
    assert 2 < large / small < 4  # most of it is quadratic in the channels
    assert unet.flops(4, 2, 16, (16, 16, 3)) == 4 * unet.flops(4, 2, 16, (8, 8, 3))


def test_flops_are_those_of_the_compiled_products():
    x, time, run, _ = halves(2, side=32, channels=16, width=16)
    counted = jax.jit(run).lower(x, time).compile().cost_analysis()["flops"] / 2
    # The compiler counts norms too, and not what lies beyond the edges.
    assert 0.9 < unet.flops(16, 2, 16, (32, 32, 3)) / counted < 1.1
