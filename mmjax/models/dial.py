"""One network between autoregression and flow: a base family, and alpha for text and for pictures.

The base is Transfusion (pictures are patches, denoised) or Chameleon (pictures are codes). Its
network is trained under the masks and times of `mmjax.dial`, with one weight more, the embedding of
[MASK]. At alpha = 1 for text and 0 for patches this is Transfusion, at 1 and 1 with codes it is
Chameleon, term for term and bit for bit.

Spans: a picture; and a maximal run of text with a loss, EOS with it, without BOI, EOI and the
separator of turns. Those three, BOS and prompts belong to none: they are clean, and where they have
a loss they are predicted from what stands before, as ever. With a Transfusion base that excludes
EOI after a picture. Later parts see an earlier one as it stands at its own clock; with the base's
`context="clean"` they see pictures as they are, and all blocks of a picture (at alpha = 1 all
patches) are trained at once, see `models.blocks`, and so are masked tokens with `two_streams`.

Discrete tokens are clean with probability t_i, else [MASK], and the masked active ones count
    L = E_s E_mask sum_i (1 / w) active_i masked_i / (1 - t_i) CE_i
(with other schedules k(t) of what is clean: k'(t_i) / (1 - k(t_i)) in place of 1 / (1 - t_i)),
which bounds -log p(x) from above at every alpha: it averages over the orders in which independent
reveal times, uniform in the windows, uncover the tokens. At alpha = 1 it is -log p(x) itself, and
is taken in one causal pass, every token being given to those behind it. Patches count
    L = E_s E_noise (1 / n) sum_i (1 / w) active_i |f_theta(x_t, t)_i - target_i|^2.
At alpha = 1 that is autoregression with a flow for every patch: no likelihood, and no bound of one.
Sums run over tokens (times their loss weights) and pictures, as in the base: a long text counts
more than a short one. Codes have no noise limit: without `two_streams`, at alpha below 1, what
follows a picture of codes learns from one that is half masked on average. How many tokens a span
has is known before them; `data.ends` gives texts at alpha < 1 few lengths, filled up with EOS, and
sampling keeps to those.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax import dial, flops
from mmjax.batch import (
    IMAGE,
    TEXT,
    Batch,
    Vocabulary,
    causal_mask,
    next_weight,
    precedes_text,
    target_weight,
)
from mmjax.dial import Moment
from mmjax.layers.patch import collect
from mmjax.layers.weight import PARAM_DTYPE, normal
from mmjax.losses import Terms
from mmjax.mesh import Rules
from mmjax.models import blocks, chameleon, transfusion
from mmjax.models.decoder import DecoderConfig
from mmjax.models.denoise import paced
from mmjax.models.dial_config import Config
from mmjax.models.family import DENOISING, DRAWS, Abilities, Model
from mmjax.models.transfusion import Config as Transfusion

# Folded into keys for draws the base lacks.
CLOCK, MASKS, EMBEDDING, BLOCKS = 0x636C, 0x6D61, 0x656D, 0x626C
LEAST = 1e-3  # smallest 1 - t that anything is divided by


class Parts(NamedTuple):
    """The family's pieces, for its loss and for sampling.

    Attributes:
        config: the family's. base: the base family's parts, functions of the same params.
        vocabulary, decoder, embed, run, head, coded, clean, codec: the base's.
        mask: batch -> [b, l, l] bool, of documents that are given.
    """

    config: Config
    base: Any
    vocabulary: Vocabulary
    decoder: DecoderConfig
    embed: Any
    run: Any
    head: Any
    coded: Any
    clean: Any
    codec: Any
    mask: Any


class Draw(NamedTuple):
    """Clocks and masks of a batch.

    Attributes:
        now: what the clocks say. discrete: [b, l] bool, tokens that are masked with time.
        masked: [b, l] bool, those that are now.
    """

    now: Moment
    discrete: jax.Array
    masked: jax.Array


def predicted(c: Config, batch: Batch):
    """[b, l - 1] f32: weight of predicting token j + 1 from position j, as the base has it."""
    return target_weight(batch) if c.chameleon is None else next_weight(batch)


def members(c: Config, batch: Batch, vocabulary: Vocabulary):
    """([b, l] bool: in a span and discrete, [b, l] bool: in a span).

    Discrete tokens of alpha = 1 are in none: given to those behind them, they are predicted in one
    pass, which has the loss's mean over clocks for its value.
    """
    v = vocabulary
    border = jnp.isin(batch.tokens, jnp.array([v.boi, v.eoi, v.sep]))
    written = jnp.pad(predicted(c, batch) > 0, ((0, 0), (1, 0))) & ~border
    word = batch.modality == TEXT
    discrete = written & word if c.text_alpha < 1 else jnp.zeros_like(word)
    if c.chameleon is None:
        # Under windows a picture of a prompt is read as it is, as in sampling; without (alpha = 0)
        # it is in a span for its mask's sake, and Transfusion gives it no noise.
        drawn = (batch.image > 0) & ((batch.weight > 0) | (c.image_alpha == 0))
        return discrete, discrete | drawn
    if c.image_alpha < 1:
        discrete |= written & ~word
    return discrete, discrete


def draw(c: Config, batch: Batch, vocabulary: Vocabulary, keys, stratum=(0, 1)) -> Draw:
    """Draws every span's clock and its masks; `keys` [b], one a row.

    stratum: (i, n) draws clocks from the i-th of n equal parts of [0, 1).
    """
    (part, parts), length = stratum, batch.tokens.shape[1]
    discrete, inside = members(c, batch, vocabulary)
    held = dial.spans(batch, inside)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    now = look(c, batch, held, (part + dial.clocks(fold(keys, CLOCK), held)) / parts)
    if c.two_streams:
        first = of_tokens(c, batch, now, discrete).first
        u = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(fold(keys, BLOCKS))
        now = dial.at_once(now, discrete, jnp.take_along_axis((part + u) / parts, first, axis=1))
    chance = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(fold(keys, MASKS))
    return Draw(now, discrete, discrete & (chance >= dial.clean_chance(c.schedule, now.time)))


def of_tokens(c: Config, batch: Batch, now: Moment, discrete) -> blocks.Blocks:
    """The blocks of discrete tokens."""
    held = dial.Spans(*(jnp.where(discrete, x, 0) for x in now.spans))
    return blocks.of_tokens(alphas(c, batch), held)


def alphas(c: Config, batch: Batch):
    """[b, l] f32: the alpha of each position's modality."""
    return jnp.where(batch.modality == IMAGE, c.image_alpha, c.text_alpha)


def look(c: Config, batch: Batch, held: dial.Spans, s) -> Moment:
    """Every span at clock s [b, l], with its modality's alpha."""
    return dial.moment(c.form, alphas(c, batch), held, s)


def coefficient(c: Config, drawn: Draw):
    """[b, l] f32: what each token's cross-entropy counts; 1 outside spans, and 1 on average."""
    share = drawn.now.rate * drawn.masked.astype(jnp.float32)
    if c.weight == "elbo":
        share *= dial.reveal_rate(c.schedule, drawn.now.time, LEAST)
    else:
        share /= dial.SCHEDULES[c.schedule]
    return jnp.where(drawn.discrete, share, 1.0)


def posed(c: Config, base, batch: Batch, drawn: Draw):
    """The base's parts, reading [MASK] where tokens are masked, under the mask of the moment."""

    def embed(params, tokens):
        return blocks.hide(drawn.masked, params["mask"], base.embed(params, tokens))

    def run(params, *args, **named):
        count = blocks.most(c.masks, batch.tokens.shape[1])
        held = of_tokens(c, batch, now, drawn.discrete)
        both = blocks.beside(base.run, held, drawn.masked, params["mask"], count)
        return both(params, *args, **named)

    now = drawn.now
    if copied(c) and c.image_alpha > 0:
        # The clock is that of the noisy copies; the row itself holds the pictures as they are.
        now = now._replace(active=now.active & drawn.discrete)
    seen = dial.visible(batch, now, drawn.discrete)
    if c.clean_mask == "both":
        seen |= blocks.within(c.image_alpha, batch, c.tokens)
    if c.two_streams:
        return base._replace(run=run, mask=lambda _: seen)
    return base._replace(embed=embed, mask=lambda _: seen)


def copied(c: Config) -> bool:
    """Whether noisy pictures stand in copies behind the row."""
    return c.transfusion is not None and c.transfusion.context == "clean"


def recount(c: Config, terms: Terms, batch: Batch) -> Terms:
    """Terms per token rather than per masked token: their counts without the coefficients.

    What is logged beside the loss stays a mean over masked tokens, but for the bound.
    """
    weight, written = predicted(c, batch), batch.modality[:, 1:]
    counts = {"text": weight.sum()}
    if c.chameleon is not None:
        word, code = (jnp.where(written == kind, weight, 0.0).sum() for kind in (TEXT, IMAGE))
        counts = {"text": c.chameleon.text_weight * word, "image": c.chameleon.image_weight * code}
    new = {"text" if c.chameleon is None else "tokens": sum(counts.values())}
    if c.weight == "elbo":
        new |= {f"{name}/nll": count for name, count in counts.items()}
    return terms | {name: terms[name]._replace(count=count) for name, count in new.items()}


def loss(c: Config, parts: Parts, params, batch: Batch, keys) -> Terms:
    """The base's terms at clocks drawn here. `keys` [b], one a row, drive all draws."""
    return loss_of(c, parts, params, batch, draw(c, batch, parts.vocabulary, keys), keys)


def loss_of(c: Config, parts: Parts, params, batch: Batch, drawn: Draw, keys) -> Terms:
    """The base's terms at given clocks and masks; `keys` drive its own draws, see `loss`."""
    base = posed(c, parts.base, batch, drawn)
    weighed = batch._replace(weight=batch.weight * coefficient(c, drawn))
    if c.transfusion is None:
        terms = chameleon.loss(c.base, base, params, weighed, keys)
        whole = c.text_alpha == c.image_alpha == 1
    else:
        terms = pictures(c, c.transfusion, base, params, weighed, drawn.now, keys)
        whole = c.text_alpha == 1
    return terms if whole else recount(c, terms, batch)


def pictures(c: Config, base: Transfusion, parts, params, batch: Batch, now: Moment, keys) -> Terms:
    """Transfusion's terms, each patch at its own time.

    At alpha = 0 a picture's time is drawn by Transfusion, else from the clock's uniform one by the
    same distribution's quantile function.
    """
    if c.image_alpha == 0:
        return transfusion.loss(base, parts, params, batch, keys)
    draws = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    slots, p = batch.pixels.shape[1], base.tokens
    rate, sight = None, None
    if copied(c) and (c.form == "block" or c.image_alpha == 1):  # all blocks in one pass
        u, sight = blocks.patches(c.image_alpha, batch, p, draws[:, 1])
    else:
        both = jnp.stack([now.time, now.rate], -1)
        u, rate = jnp.moveaxis(collect(both, batch.image, slots, p), -1, 0)
        if copied(c):
            sight = blocks.beside_active(batch, rate > 0)
    before = precedes_text(batch, parts.vocabulary)[..., None]
    t = paced(base, u, jnp.broadcast_to(before, u.shape))
    return transfusion.loss_at(base, parts, params, batch, t, draws[:, 0], draws[:, 2], rate, sight)


def given_mask(c: Config, base, batch: Batch):
    """[b, l, l] bool: who sees whom in a document that is given, nothing of it masked.

    What has alpha = 0 is active as long as its clock runs: it never saw itself but both ways, and
    so it is read here, but with two streams. All else is over, and causal, patches if their
    configuration has them so.
    """
    mask = base.mask(batch) if c.image_alpha == 0 else causal_mask(batch)
    if c.clean_mask == "both":
        mask |= blocks.within(c.image_alpha, batch, c.tokens)
    discrete, _ = members(c, batch, base.vocabulary)
    still = (alphas(c, batch) == 0) & discrete & (not c.two_streams)
    held = dial.spans(batch, still)
    whole = jnp.ones(still.shape, jnp.float32)
    return mask | dial.visible(batch, Moment(held, whole, still, whole), still)


def forward_flops(c: Config, parts: Parts, base: Callable, batch: Batch) -> float:
    """Forward FLOPs of a host batch: what `base` counts, and the copies of masked tokens."""
    discrete, _ = members(c, batch, parts.vocabulary)
    held = blocks.of_tokens(alphas(c, batch), dial.spans(batch, discrete))
    copies, pairs = blocks.counts(batch, held)
    d = c.decoder
    shape = d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp
    return base(batch) + flops.decoder(*shape, copies, pairs)


def abilities(c: Config) -> Abilities:
    """What a trained one can do; only at alpha 1 has a text a likelihood from left to right."""
    options = ("guidance", "steps", "text_guidance", "temperature", "image_temperature")
    solved = () if c.transfusion is None else DENOISING
    return Abilities(
        generate="span",
        options=tuple(dict.fromkeys((*options, *solved))),
        draws=True,
        log_likelihood="decoder" if c.text_alpha == 1 else None,
        vectors="decoder",
        evals=("bound", *DRAWS),
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    family = chameleon if c.transfusion is None else transfusion
    model = family.build(c.base, vocabulary, rules)
    base = model.parts
    parts = Parts(
        c, base, vocabulary, base.decoder, base.embed, base.run, base.head, base.coded, base.clean,
        base.codec, partial(given_mask, c, base),
    )  # fmt: skip

    def init(key):
        own = jax.random.fold_in(key, EMBEDDING)
        return model.init(key) | {"mask": normal(own, (c.decoder.width,), PARAM_DTYPE, 1.0)}

    return model._replace(
        init=init,
        flops=partial(forward_flops, c, parts, model.flops) if c.two_streams else model.flops,
        specs=model.specs | {"mask": rules.spec("embed")},
        loss=partial(loss, c, parts),
        parts=parts,
    )
