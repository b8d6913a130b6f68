"""Patches and back, in raster order, and their places in a sequence against loops."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import random_batch

from mmjax.layers.patch import collect, patchify, spread, to_pixels, to_signal, unpatchify

counts = st.integers(1, 4)


@settings(max_examples=12, deadline=None)  # every shape is compiled anew
@given(st.integers(0, 999), counts, counts, counts, st.sampled_from([(), (2,), (2, 3)]))
def test_patches_are_in_raster_order_and_unpatchify_undoes_them(seed, rows, columns, patch, lead):
    shape = (*lead, rows * patch, columns * patch, 3)
    images = np.random.default_rng(seed).integers(0, 256, shape)
    got = np.asarray(patchify(jnp.asarray(images), patch))
    assert got.shape == (*lead, rows * columns, patch * patch * 3)
    for r in range(rows):
        for c in range(columns):
            block = images[..., r * patch : (r + 1) * patch, c * patch : (c + 1) * patch, :]
            np.testing.assert_array_equal(got[..., r * columns + c, :], block.reshape(*lead, -1))
    np.testing.assert_array_equal(unpatchify(got, patch, *shape[-3:-1]), images)


def test_height_and_width_are_not_the_same_thing():
    images = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    back = np.asarray(unpatchify(patchify(jnp.asarray(images), 2), 2, 6, 4))
    assert back.shape == (6, 4, 3)
    assert (back.ravel() != images.ravel()).any()


def used(batch):
    """(row, slot, columns) of every picture, by scanning the row."""
    for r in range(len(batch.image)):
        for slot in range(1, batch.image[r].max() + 1):
            yield r, slot - 1, [j for j, s in enumerate(batch.image[r]) if s == slot]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999))
def test_spread_puts_every_patch_at_its_position(seed):
    batch = random_batch(seed)
    b, slots = batch.pixels.shape[:2]
    patches = np.random.default_rng(seed).normal(size=(b, slots, 4, 3)).astype(np.float32)
    got = np.asarray(jax.jit(spread)(patches, batch.image))
    assert got.shape == (*batch.image.shape, 3)
    for r, slot, columns in used(batch):
        for number, j in enumerate(columns):
            np.testing.assert_array_equal(got[r, j], patches[r, slot, number])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999))
def test_collect_takes_every_patch_from_its_position(seed):
    batch = random_batch(seed)
    slots = batch.pixels.shape[1]
    x = np.random.default_rng(seed).normal(size=(*batch.image.shape, 3)).astype(np.float32)
    got = np.asarray(jax.jit(collect, static_argnums=(2, 3))(x, batch.image, slots, 4))
    assert got.shape == (len(x), slots, 4, 3)
    for r, slot, columns in used(batch):
        np.testing.assert_array_equal(got[r, slot], x[r, columns])


def test_collect_undoes_spread_and_there_were_pictures():
    total = 0
    for seed in range(8):
        batch = random_batch(seed)
        slots = batch.pixels.shape[1]
        patches = np.random.default_rng(seed).normal(size=(2, slots, 4, 3)).astype(np.float32)
        back = np.asarray(collect(spread(patches, batch.image), batch.image, slots, 4))
        for r, slot, _ in used(batch):
            total += 1
            np.testing.assert_array_equal(back[r, slot], patches[r, slot])
            assert (back[r, slot] != patches[r, slot - 1]).any() or slots == 1
    assert total > 10


def test_all_256_values_survive_the_way_to_signals_and_back():
    values = np.arange(256, dtype=np.uint8)
    signal = to_signal(values)
    assert signal.dtype == jnp.float32 and (signal[0], signal[-1]) == (-1, 1)
    np.testing.assert_array_equal(to_pixels(signal), values)
    assert to_pixels(signal).dtype == jnp.uint8
    assert (np.asarray(to_pixels(signal + 1 / 127.5))[:-1] == values[1:]).all()


def test_signals_out_of_range_are_clipped():
    np.testing.assert_array_equal(to_pixels(jnp.array([-7.0, -1.01, 1.01, 9.0])), [0, 0, 255, 255])
