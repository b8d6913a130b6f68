"""Masked tokens in copies behind the row: what one clock would have answered, block by block."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dials import CODE_MODEL, CODE_PARAMS, CODED, CODES, PARAMS, PATCHES, RULES
from random_batch import VOCABULARY, random_batch
from test_dial_model import WORDS, code_batch, keys

from mmjax import dial, flops, losses
from mmjax.batch import causal_mask
from mmjax.error import UserError
from mmjax.models import blocks, chameleon
from mmjax.models import dial as family

OWN = dict(towers=2, untie=("qkv", "o", "ffn"))  # of text and of codes
OWN_CODES = replace(CODES, decoder=replace(CODES.decoder, **OWN))
OWN_MODEL = chameleon.build(OWN_CODES, CODED, RULES)
# Chameleons: config, model and weights.
BASES = {
    "shared": (CODES, CODE_MODEL, CODE_PARAMS),
    "own": (
        OWN_CODES,
        OWN_MODEL,
        jax.jit(OWN_MODEL.init)(jax.random.key(0)) | {"mask": PARAMS["mask"]},
    ),
}


def streams(text, image, base="codes", codes=CODES, **changes):
    """The dial in two streams, over codes or over patches."""
    shape = (None, codes) if base == "codes" else (replace(PATCHES, **changes), None)
    c = family.Config(*shape, text, image, "block", "elbo", "linear", True)
    return family.build(c, CODED if base == "codes" else VOCABULARY, RULES)


def spread_out(model, batch, seed=0, params=None):
    """(A draw, the blocks, -log p [b, l - 1] of each token): from one pass."""
    c, parts = model.parts.config, model.parts
    params = params or (CODE_PARAMS if c.transfusion is None else PARAMS)
    drawn = family.draw(c, batch, parts.vocabulary, keys(batch, seed))
    base = family.posed(c, parts.base, batch, drawn)
    x = base.embed(params, batch.tokens)
    hidden, _ = base.run(params, x, base.mask(batch), batch.position, tower=batch.modality)
    return drawn, family.of_tokens(c, batch, drawn.now, drawn.discrete), nll(params, hidden, batch)


def nll(params, hidden, batch):
    logs = jax.nn.log_softmax((hidden[:, :-1] @ params["head"]["w"]).astype(jnp.float32))
    return -jnp.take_along_axis(logs, batch.tokens[:, 1:, None], axis=-1)[..., 0]


@partial(jax.jit, static_argnums=0)
def one_block(name, batch, held, discrete, masked, here):
    """-log p [b, l - 1] with the tokens `here` [b, l] active, and all else as it is."""
    still = jnp.where(here, 0.0, 1.0)
    now = dial.Moment(held, still, here, still)
    drawn = family.Draw(now, discrete, masked & here)
    codes, model, params = BASES[name]
    c = family.Config(None, codes, 0.5, 0.5, "block", "elbo", "linear")
    base = family.posed(c, model.parts, batch, drawn)
    x = base.embed(params, batch.tokens)
    at = base.mask(batch), batch.position
    return nll(params, base.run(params, x, *at, tower=batch.modality)[0], batch)


CASES = [("shared", 0.5, 0.5), ("own", 0.5, 0.5), ("shared", 0.0, 0.7), ("own", 0.0, 0.7)]


@pytest.mark.parametrize(
    ("name", "text", "image"), [*CASES, ("shared", 0.3, 1.0), ("shared", 0.0, 0.0)]
)
def test_each_block_is_read_as_if_it_alone_were_masked(name, text, image):
    """Packed documents, prompts among them, each block against a pass of its own.

    Also where text and codes have weights of their own.
    """
    codes, plain, params = BASES[name]
    batch, model = code_batch(2), streams(text, image, codes=codes)
    drawn, held, found = jax.jit(lambda k: spread_out(model, batch, k, params))(0)
    first = np.where(np.asarray(held.inside), np.asarray(held.first), -1)
    begins, masked = np.asarray(held.begins), np.asarray(drawn.masked)
    assert (begins.sum(1) <= blocks.most(model.parts.config.masks, batch.tokens.shape[1])).all()
    assert 0 < masked.sum() < np.asarray(drawn.discrete).sum()
    args = batch, drawn.now.spans, drawn.discrete, drawn.masked
    rows, far = np.arange(len(begins)), 0
    for n in range(begins.sum(1).max()):
        # The n-th block of every row, at once: rows know nothing of each other.
        columns = np.array([(np.flatnonzero(b)[n:] if n < b.sum() else [0])[0] for b in begins])
        here = (first == columns[:, None]) & begins[rows, columns][:, None]
        want = np.asarray(one_block(name, *args, jnp.asarray(here)))
        at = here[:, 1:]
        np.testing.assert_allclose(np.asarray(found)[at], want[at], atol=2e-5)
        other = np.asarray(one_block(name, *args, jnp.asarray(here & ~begins)))
        far = max(far, np.abs(other[at] - want[at]).max(initial=0))
    assert far > 1e-2  # blocks without their first token would be read otherwise
    # What is in no span is read as in a row that is given.
    x = plain.parts.embed(params, batch.tokens)
    at = causal_mask(batch), batch.position
    given = nll(params, plain.parts.run(params, x, *at, tower=batch.modality)[0], batch)
    free = ~np.asarray(drawn.discrete)[:, 1:] & (batch.segment[:, 1:] > 0)
    np.testing.assert_allclose(np.asarray(found)[free], np.asarray(given)[free], atol=2e-5)
    assert np.abs(np.asarray(found - given)[~free & (batch.segment[:, 1:] > 0)]).max() > 1e-2


def test_blocks_of_one_token_are_autoregression():
    """Four words in four blocks, masked or not: each is told what it would be told from left."""
    model = streams(0.999, 0.0, "patches")
    c = model.parts.config
    assert dial.windows("block", 0.999, jnp.arange(4), jnp.full((4,), 4)).begin.tolist() == [
        0,
        1,
        2,
        3,
    ]
    x = model.parts.embed(PARAMS, WORDS.tokens)
    plain = model.parts.base.run(PARAMS, x, causal_mask(WORDS), WORDS.position)[0]
    for seed in range(3):
        _, held, found = spread_out(model, WORDS, seed)
        assert held.begins.sum() == 4
        np.testing.assert_allclose(found, nll(PARAMS, plain, WORDS), atol=1e-5)
    wide = replace(c, text_alpha=0.5)
    _, held, found = spread_out(family.build(wide, VOCABULARY, RULES), WORDS)
    assert held.begins.sum() == 2 and np.abs(found - nll(PARAMS, plain, WORDS)).max() > 1e-3


def test_the_loss_has_the_mean_of_one_clock_at_less_variance():
    two = streams(0.5, 0.0, "patches")
    one = family.build(replace(two.parts.config, two_streams=False), VOCABULARY, RULES)

    def samples(model):
        def found(key):
            return model.loss(PARAMS, WORDS, key[None])["text"].sum

        return np.asarray(jax.jit(jax.vmap(found))(jax.random.split(jax.random.key(4), 20_000)))

    a, b = (np.minimum(samples(model), 60.0) for model in (one, two))  # weights have heavy tails
    assert b.var() < 0.7 * a.var()
    error = (a.var() / a.size + b.var() / b.size) ** 0.5
    assert abs(a.mean() - b.mean()) < 4 * error + 0.02 * a.mean()


@pytest.mark.parametrize(
    "model",
    [
        streams(0.5, 0.5),
        streams(0.3, 0.0, "patches"),
        streams(0.3, 0.5, "patches", context="clean"),
    ],
)
def test_masked_tokens_are_known_to_nobody_in_their_block_and_to_all_behind_it(model):
    coded = model.parts.config.transfusion is None
    params = CODE_PARAMS if coded else PARAMS
    batch = code_batch(7) if coded else random_batch(7)
    terms = jax.jit(model.loss)(params, batch, keys(batch))
    assert all(np.isfinite(term.sum) for term in terms.values())
    drawn, held, found = jax.jit(lambda b: spread_out(model, b))(batch)
    masked, first = np.asarray(drawn.masked), np.asarray(held.first)
    word = masked & (batch.image == 0)
    r, j = np.argwhere(word)[len(np.argwhere(word)) // 2]
    tokens = batch.tokens.copy()
    tokens[r, j] = 9 if tokens[r, j] != 9 else 10
    _, _, other = jax.jit(lambda b: spread_out(model, b))(batch._replace(tokens=tokens))
    change = np.abs(np.asarray(found - other))
    change[r, j - 1] = 0  # the target is another
    block = np.flatnonzero((first[r] == first[r, j]) & np.asarray(held.inside)[r])
    behind = (np.arange(len(first[r])) > block.max()) & (batch.segment[r] == batch.segment[r, j])
    assert (change[r, block - 1] == 0).all() and change[np.arange(len(masked)) != r].max() == 0
    if behind.any():
        assert (change[r][behind[1:]] > 0).any()
    total = jax.grad(lambda p: losses.total(model.loss(p, batch, keys(batch)), model.weights))
    grad = jax.jit(total)(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad))
    assert np.abs(grad["mask"]).max() > 0


def test_where_there_are_no_blocks_it_is_refused():
    good = family.Config(PATCHES, None, 0.5, 0.5, "block", "elbo", "linear", True)
    for changes in ({"form": "ramp"}, {"text_alpha": 1.0}):
        with pytest.raises(UserError, match="two_streams=True is for discrete tokens in blocks"):
            replace(good, **changes)
    assert family.Config(None, CODES, 1.0, 0.5, "block", "elbo", "linear", True).masks == (0.5,)


def test_copies_are_counted():
    """Four words in two blocks: of the first block's rows each sees the other, itself and the
    anchor; of the second's also two positions before them; anchors one word less."""
    two = streams(0.5, 0.0, "patches")
    d = two.parts.config.decoder
    one = family.build(replace(two.parts.config, two_streams=False), VOCABULARY, RULES)
    pairs = 2 * 3 + 2 * (3 + 2) + (1 + 1) + (2 + 1 + 1)
    more = flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, 4 + 2, pairs)
    np.testing.assert_allclose(two.flops(WORDS), one.flops(WORDS) + more)


@pytest.mark.parametrize(("text", "image"), [(0.5, 0.5), (0.0, 0.7), (0.3, 1.0)])
def test_their_count_is_that_of_the_mask(text, image):
    batch, c = code_batch(4), streams(text, image).parts.config
    discrete, _ = family.members(c, batch, CODED)
    held = blocks.of_tokens(family.alphas(c, batch), dial.spans(batch, discrete))
    behind = blocks.copies(held, batch.tokens.shape[1])
    used = np.concatenate([held.inside, behind.used], axis=1)
    seen = np.asarray(blocks.mask_with(causal_mask(batch), held, behind))
    pairs = (seen[:, batch.tokens.shape[1] :] & used[:, :, None]).sum()
    assert blocks.counts(batch, held) == (used.sum(), pairs) and pairs > 100
