"""Spans, windows, times and masks of the dial against plain loops and exact fractions."""

from fractions import Fraction as F
from itertools import product
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import random_batch

from mmjax import dial

ALPHAS = [F(0), F(1, 10), F(3, 10), F(1, 2), F(7, 8), F(1)]
SIZES = [1, 2, 3, 4, 7, 16, 33]


def members(batch, seed):
    """Some runs of positions, never a document's first."""
    rng = np.random.default_rng(seed)
    member = (batch.weight > 0) & (rng.random(batch.weight.shape) < 0.8)
    return member | ((batch.image > 0) & (seed % 2 == 0))


def plain_spans(batch, member):
    """{(row, column): (number, place, size)} of members, position by position."""
    found = {}
    for r in range(len(member)):
        runs: list[list[int]] = []
        for j in np.flatnonzero(member[r]):
            kind = (batch.segment[r, j], batch.image[r, j])
            same = runs and runs[-1][-1] == j - 1
            if same and kind == (batch.segment[r, j - 1], batch.image[r, j - 1]):
                runs[-1].append(j)
            else:
                runs.append([j])
        for number, run in enumerate(runs, start=1):
            found |= {(r, j): (number, i, len(run)) for i, j in enumerate(run)}
    return found


def exact_window(form, alpha, i, n):
    """Begin and width as the definition has them."""
    if form == "ramp":
        return alpha * i / n, 1 - alpha * (n - 1) / n
    k = min(max(round(n ** float(alpha)), 1), n)
    return F(i * k // n, k), F(1, k)


def window_of(form, alpha, n):
    size = jnp.full((n,), n, jnp.int32)
    return dial.windows(form, float(alpha), jnp.arange(n, dtype=jnp.int32), size)


@jax.jit
def both(s, window):
    return dial.local_time(s, window), dial.active(s, window)


def at(s, window):
    """Times and who is active, [s, n] each, at clocks s [s]."""
    wide = jax.tree.map(lambda x: x[None], window)
    return [np.asarray(x) for x in both(jnp.asarray(s, jnp.float32)[:, None], wide)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_spans_are_maximal_runs(seed):
    batch = random_batch(seed)
    member = members(batch, seed)
    held = dial.spans(batch, member)
    want = plain_spans(batch, member)
    for r, j in np.ndindex(member.shape):
        got = tuple(int(x[r, j]) for x in held)
        assert got == want.get((r, j), (0, 0, 0))
    assert want


@pytest.mark.parametrize("form", dial.FORMS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_windows_times_and_who_is_active(form, alpha):
    for n in SIZES:
        window = window_of(form, alpha, n)
        times, actives = at(np.arange(64) / 64, window)
        for s, time, now in zip((F(k, 64) for k in range(64)), times, actives, strict=True):
            for i in range(n):
                begin, width = exact_window(form, alpha, i, n)
                assert abs(time[i] - float(min(max((s - begin) / width, 0), 1))) < 2e-5
                if min(abs(s - begin), abs(s - begin - width)) > 1e-6 or form == "block":
                    assert now[i] == (begin <= s < begin + width), (n, s, i)
        np.testing.assert_allclose(window.width, float(width), rtol=1e-6)


@pytest.mark.parametrize("form", dial.FORMS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 33, 100, 1000])
def test_the_ends_of_the_dial_are_exact(form, n):
    """All active at alpha = 0 and exactly one at alpha = 1, at any s that can be drawn."""
    s = np.concatenate([np.arange(n) / n, np.random.default_rng(n).random(200), [0, 1 - 2.0**-23]])
    s = jnp.asarray(s, jnp.float32)[:, None]
    every = [jax.tree.map(lambda x: x[None], window_of(form, a, n)) for a in (0, 1)]
    assert np.asarray(dial.active(s, every[0])).all()
    one = np.asarray(dial.active(s, every[1]))
    assert (one.sum(1) == 1).all()
    time = np.asarray(dial.local_time(s, every[1]))
    at = one.argmax(1)
    assert (np.diff(at[np.argsort(np.asarray(s[:, 0]), kind="stable")]) >= 0).all()
    for row, i in zip(time, at, strict=True):
        assert (row[:i] == 1).all() and (row[i + 1 :] == 0).all()
    if n > 1:
        half = jax.tree.map(lambda x: x[None], window_of("ramp", 0.5, n))
        assert len(set(np.asarray(dial.active(s, half)).sum(1).tolist())) > 1


@pytest.mark.parametrize("form", dial.FORMS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 4, 10, 25])
def test_on_average_n_w_are_active_and_the_last_ends_with_the_clock(form, alpha, n):
    grid = 80 * n * 7  # every border of these windows lies between two of its points
    s = (jnp.arange(grid, dtype=jnp.float32)[:, None] + 0.5) / grid
    window = jax.tree.map(lambda x: x[None], window_of(form, alpha, n))
    now = np.asarray(dial.active(s, window))
    width = exact_window(form, alpha, 0, n)[1]
    assert abs(now.sum() / grid - float(n * width)) <= n / grid
    time = np.asarray(dial.local_time(jnp.ones((1, 1)), window))
    assert (time == 1).all() and now[-1, -1]
    # The rate is 1 / w where active, so its mean is 1 for every token: none counts more.
    np.testing.assert_allclose(now.mean(0) / float(width), 1.0, atol=2 * n / grid / float(width))
    before = np.asarray(dial.local_time(jnp.full((1, 1), 0.999), window))
    assert before[0, -1] < 1


def plain_visible(batch, now, discrete):
    """Position by position, from the definition."""
    b, length = batch.tokens.shape
    number, active = np.asarray(now.spans.number), np.asarray(now.active)
    seen = np.zeros((b, length, length), bool)
    for r, i, j in np.ndindex(seen.shape):
        if batch.segment[r, i] != batch.segment[r, j] or batch.segment[r, i] == 0:
            continue
        seen[r, i, j] = j <= i
        mine = number[r, j] > 0 and active[r, j]
        if mine and active[r, i] and number[r, i] == number[r, j]:
            seen[r, i, j] = True
        if i + 1 < length and mine and active[r, i + 1] and discrete[r, i + 1]:
            anchor = number[r, i] in (0, number[r, j])
            if number[r, i + 1] == number[r, j] and j != i + 1 and anchor:
                seen[r, i, j] = True
    return seen


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.sampled_from(dial.FORMS))
def test_who_sees_whom(seed, alpha, form):
    batch = random_batch(seed)
    held = dial.spans(batch, members(batch, seed))
    keys = jax.random.split(jax.random.key(seed), len(batch.tokens))
    alphas = np.where(batch.image > 0, np.float32(1.0 - alpha), np.float32(alpha))
    now = dial.moment(form, alphas, held, dial.clocks(keys, held))
    discrete = (np.asarray(held.number) > 0) & (batch.image == 0)
    got = np.asarray(dial.visible(batch, now, jnp.asarray(discrete)))
    np.testing.assert_array_equal(got, plain_visible(batch, now, discrete))
    # What has not begun is seen by no other of its span from before it or beside it.
    number, time = np.asarray(held.number), np.asarray(now.time)
    unbegun = (number > 0) & (time == 0) & ~np.asarray(now.active)
    before = np.triu(np.ones(got.shape[1:], bool), 1)[None]
    assert not (got & before & unbegun[:, None, :]).any()
    inside = number[:, :, None] == number[:, None, :]
    assert not (got & inside & np.asarray(now.active)[:, :, None] & unbegun[:, None, :]).any()


def test_an_anchor_in_another_span_keeps_its_view():
    """Two spans side by side: the first one's tokens must not read the second through its anchor.

    Numbers are given by hand, for `spans` makes such neighbours only of text beside codes.
    """
    batch = random_batch(0, rows=1, length=8)
    batch = batch._replace(segment=np.ones((1, 8), np.int32))
    number = jnp.array([[0, 1, 1, 1, 2, 2, 2, 2]])
    place, size = jnp.array([[0, 0, 1, 2, 0, 1, 2, 3]]), jnp.array([[0, 3, 3, 3, 4, 4, 4, 4]])
    now = dial.moment(
        "ramp", jnp.zeros((1, 8)), dial.Spans(number, place, size), jnp.full((1, 8), 0.5)
    )
    seen = np.asarray(dial.visible(batch, now, number > 0))[0]
    assert not seen[:4, 4:].any() and seen[4:, 4:].all() and seen[0, 2:4].all()
    assert not seen[0, 1]
    apart = now._replace(spans=now.spans._replace(number=number.at[0, 3].set(0)))
    assert np.asarray(dial.visible(batch, apart, number > 0))[0, 3, 5:].all()


def test_one_clock_a_span_from_the_rows_own_key():
    batch = random_batch(3)
    held = dial.spans(batch, batch.weight > 0)
    keys = jax.random.split(jax.random.key(0), 2)
    s, number = np.asarray(dial.clocks(keys, held)), np.asarray(held.number)
    assert (s >= 0).all() and (s < 1).all()
    for r in range(2):
        values = {n: set(s[r, number[r] == n].tolist()) for n in set(number[r].tolist())}
        assert all(len(v) == 1 for v in values.values())
        assert len(set.union(*values.values())) == len(values) > 1
    turned = np.asarray(dial.clocks(keys[::-1], jax.tree.map(lambda x: x[::-1], held)))
    np.testing.assert_array_equal(turned[::-1], s)
    many = np.asarray(dial.clocks(jax.random.split(jax.random.key(1), 4000), jax.tree.map(
        lambda x: jnp.repeat(x[:1], 4000, axis=0), held)))  # fmt: skip
    column = int(np.flatnonzero(number[0])[0])
    np.testing.assert_allclose(
        np.quantile(many[:, column], [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03
    )


N = 4
# -log p of token i, given which others are revealed, and which are active.
TABLE = -np.log(np.random.default_rng(0).uniform(0.02, 0.9, (N, 2**N, 2**N)))
POWERS = 2 ** np.arange(N)


def quadrature(alpha, points, sees_active, form="ramp"):
    """The training loss, exactly over masks and by midpoints over s."""
    window = window_of(form, alpha, N)
    total = 0.0
    times, actives = at((np.arange(points) + 0.5) / points, window)
    for time, now in zip(times.astype(np.float64), actives, strict=True):
        kind = int((now * POWERS).sum()) if sees_active else 0
        for clean in product([0, 1], repeat=N):
            chance = np.prod(np.where(clean, time, 1 - time))
            if chance == 0:
                continue
            state = int((np.array(clean) * POWERS).sum())
            weight = now & ~np.array(clean, bool)
            weight = weight / float(window.width[0]) / np.maximum(1 - time, 1e-9)
            total += chance * (weight * TABLE[:, state, kind]).sum() / points
    return total


def orders(alpha, count, sees_active, form="ramp"):
    """The same as a mean over orders: reveal times uniform in the windows. -> (mean, its error)."""
    window = window_of(form, alpha, N)
    begin = np.asarray(window.begin / window.scale)
    width = np.asarray(window.width)
    times = begin + width * np.random.default_rng(1).random((count, N))
    found = np.zeros(count)
    for i in range(N):
        state = ((times < times[:, i : i + 1]) * POWERS).sum(1)
        now = (begin <= times[:, i : i + 1]) & (times[:, i : i + 1] < begin + width)
        kind = (now * POWERS).sum(1) if sees_active else 0
        found += TABLE[i, state, kind]
    return found.mean(), found.std() / count**0.5


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("sees_active", [False, True])
def test_the_loss_is_a_mean_over_orders(alpha, sees_active):
    want, error = orders(alpha, 40_000, sees_active)
    assert abs(quadrature(alpha, 400, sees_active) - want) < 4 * error + 2e-3
    if alpha in (0.0, 0.5):
        far = quadrature(1.0, N, sees_active)
        assert abs(far - want) > 20 * error


def test_the_loss_of_blocks_is_a_mean_over_orders():
    want, error = orders(0.5, 40_000, True, "block")
    assert abs(quadrature(0.5, 400, True, "block") - want) < 4 * error + 2e-3


def test_the_ends_are_left_to_right_and_any_order():
    """alpha = 1: n midpoints give exactly the chain rule. alpha = 0: the mean over n! orders."""
    left = sum(TABLE[i, 2**i - 1, 0] for i in range(N))
    np.testing.assert_allclose(quadrature(1.0, N, False), left, rtol=1e-6)
    uniform = 0.0
    for i in range(N):
        for state in range(2**N):
            if state >> i & 1:
                continue
            k = bin(state).count("1")
            uniform += TABLE[i, state, 0] * factorial(k) * factorial(N - 1 - k) / factorial(N)
    np.testing.assert_allclose(quadrature(0.0, 400, False), uniform, rtol=1e-4)
    assert abs(uniform - left) > 0.05
