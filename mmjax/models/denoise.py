"""A batch with noisy pictures through a decoder: times, inputs, masks, estimates.

For every family whose pictures go in and out of its decoder as patches with noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax import diffusion
from mmjax.batch import TEXT, Batch, Vocabulary, slot_columns
from mmjax.codecs.autoencoder import Codec
from mmjax.diffusion import Estimate
from mmjax.error import UserError
from mmjax.layers.patch import collect, spread, unpatchify
from mmjax.models.decoder import DecoderConfig


class Parts(NamedTuple):
    """A family's pieces, for its loss and for sampling; all are pure functions of params.

    Attributes:
        config, vocabulary: what the model was built with. decoder: its decoder's configuration.
        embed: (params, tokens [b, l]) -> [b, l, d].
        signal: (params, batch) -> [b, i, h, w, c] f32, its pictures as they are denoised.
        picture: (params, signal [n, h, w, c]) -> uint8 [n, h, w, 3].
        patch_in: (params, noisy [b, i, h, w, c], t [b, i]) -> ([b, i, p, d], kept).
        patch_out: (params, hidden [b, i, p, d], kept) -> [b, i, h, w, c] f32.
        run: (params, x [b, l, d], mask, position, cache, columns, keys) -> ([b, l, d], cache).
        head: params -> [d, v], what maps decoder outputs to logits.
        coded: (params, batch) -> the batch: there are no codes.
        clean: (params, batch) -> [b, l, d], what the decoder reads, pictures given as they are.
        mask: batch -> [b, l, l] bool.
        codec: functions of params["codec"], or None where pixels are denoised.
        kinds: of a Transfusion with `config.kinds` a view of all this for each kind, the default
            first: there config is a `Kind`, and signal, picture and both ends are the kind's own.
        gaps: of a OneFlow (params, hidden [b, l, d]) -> (logit of pi, log lambda), each [b, l] f32.
    """

    config: Any
    vocabulary: Vocabulary
    decoder: DecoderConfig
    embed: Callable
    signal: Callable
    picture: Callable
    patch_in: Callable
    patch_out: Callable
    run: Callable
    head: Callable
    coded: Callable
    clean: Callable
    mask: Callable
    codec: Codec | None = None
    kinds: tuple[Any, ...] = ()
    gaps: Any = None


def check_numbers(c, at: str) -> None:
    """Checks what a configuration, which lies at `at`, says of noise levels and the signal.

    Raises:
        UserError: naming field, value and range.
    """
    for name, fits, rule in (
        ("context_time", 0.0 <= c.context_time < 1.0, "be at least 0, which is noise, and below 1"),
        ("time_std", c.time_std >= 0.0, "be at least 0"),
        ("time_shift", c.time_shift > 0.0, "be above 0"),
        ("signal_std", c.signal_std > 0.0, "be above 0"),
    ):
        if not fits:
            raise UserError(f"{at}.{name}={getattr(c, name)} must {rule}")


def noise_level(c, keys, before_text):
    """Draws t for every slot, and at least `context_time` where text follows a noisy picture.

    keys [b], before_text [b, i] bool -> [b, i] f32 in (0, 1).
    """
    shape = before_text.shape[1:]
    if c.time_std == 0.0:
        t = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
    else:
        draw = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        t = jax.nn.sigmoid(c.time_mean + c.time_std * draw)
    t = diffusion.shifted(t, c.time_shift)
    if c.context == "clean":
        return t
    return jnp.where(before_text, c.context_time + (1.0 - c.context_time) * t, t)


def paced(c, u, before_text):
    """Times with the distribution of `noise_level` from uniform ones: its quantile function.

    u in [0, 1], before_text of the same shape -> f32; 1 stays 1, and 0 is the lowest time.
    """
    t = u
    if c.time_std != 0.0:
        t = jax.nn.sigmoid(c.time_mean + c.time_std * jax.scipy.special.ndtri(u))
    t = diffusion.shifted(t, c.time_shift)
    if c.context == "clean":
        return t
    return jnp.where(before_text, c.context_time + (1.0 - c.context_time) * t, t)


def wide(t):
    """Times [b, i] -> [b, i, 1, 1, 1], as they meet signals."""
    return t[:, :, None, None, None]


def over(c, x):
    """Numbers of pictures [b, i], or of their patches [b, i, p], as they meet signals.

    -> [b, i, 1, 1, 1] or [b, i, h, w, 1].
    """
    if x.ndim == 2:
        return wide(x)
    h, w, _ = c.shape
    return unpatchify(jnp.repeat(x[..., None], c.cells**2, axis=-1), c.cells, h, w)


def inputs(parts, params, batch: Batch, patches):
    """What the decoder reads: token embeddings, and embedded patches [b, i, p, d] -> [b, l, d]."""
    picture = (batch.modality != TEXT)[..., None]
    return jnp.where(picture, spread(patches, batch.image), parts.embed(params, batch.tokens))


def clean_inputs(parts, params, batch: Batch):
    """Decoder inputs with every picture given as it is, at t = 1."""
    signal = parts.signal(params, batch)
    patches, _ = parts.patch_in(params, signal, jnp.ones(signal.shape[:2]))
    return inputs(parts, params, batch, patches)


def denoise(parts, params, batch: Batch, noisy, t, drop=None, sight=None):
    """One pass over a batch whose pictures are noisy.

    Args:
        noisy: [b, i, h, w, c]. t: [b, i], or one a patch [b, i, p]. drop: [b] keys of dropout.
        sight: as `beside` has it.

    Returns:
        (outputs at all positions [b, l, d], the estimates of its pictures [b, i, h, w, c]).
    """
    c = parts.config
    patches, kept = parts.patch_in(params, noisy, t)
    if c.context == "clean":
        x = clean_inputs(parts, params, batch)
        hidden, found = beside(parts, params, batch, x, patches, drop, sight)
    else:
        x = inputs(parts, params, batch, patches)
        at = parts.mask(batch), batch.position
        hidden, _ = parts.run(params, x, *at, keys=drop, tower=batch.modality)
        found = collect(hidden, batch.image, t.shape[1], c.tokens)
    output = parts.patch_out(params, found, kept)
    return hidden, diffusion.estimate(c.path, c.prediction, output, noisy, over(c, t))


class Sight(NamedTuple):
    """What a noisy copy sees of its own picture; other pictures are none of its business here.

    Attributes:
        copies: [b, i p, i p] bool. originals: [b, i p, l] bool, of the picture as it is.
    """

    copies: jax.Array
    originals: jax.Array


def beside(parts, params, batch: Batch, x, patches, drop, sight: Sight | None = None):
    """Noisy patches [b, i, p, d] in copies behind the row, which only they themselves see.

    Everything else reads the pictures as they are (BAGEL does the same, with the copy and the
    original exchanged), x [b, l, d]. The row grows by i p positions; those of a picture that has
    fewer patches than p stay vacant. Without `sight` a copy sees those of its picture that
    `picture_mask` allows, and no original.

    Returns:
        (outputs at the row's own positions [b, l, d], at the copies [b, i, p, d]).
    """
    b, slots, p, d = patches.shape
    length = batch.tokens.shape[1]
    first, _ = slot_columns(batch.image, slots)
    at = jnp.minimum(first[:, :, None] + jnp.arange(p)[None, None], length - 1).reshape(b, -1)
    slot = jnp.arange(1, slots + 1, dtype=jnp.int32)[None, :, None]
    count = jnp.sum(batch.image[:, None] == slot, axis=-1, keepdims=True)
    own = jnp.where(jnp.arange(p)[None, None] < count, slot, 0)  # number of the copy's picture
    own = own.reshape(b, -1)
    mask = parts.mask(batch)
    back = jnp.take_along_axis(mask, at[:, :, None], axis=1)  # what the original sees
    other = batch.image[:, None, :] != own[:, :, None]
    back &= other if sight is None else other | sight.originals
    copies = (own[:, :, None] == own[:, None, :]) & (own > 0)[:, :, None]
    if parts.config.picture_mask == "causal":
        copies &= jnp.tril(jnp.ones((slots * p, slots * p), bool))[None]
    if sight is not None:
        copies &= sight.copies
    forth = jnp.zeros((b, length, slots * p), bool)
    whole = jnp.concatenate(
        [jnp.concatenate([mask, forth], axis=2), jnp.concatenate([back, copies], axis=2)], axis=1
    )
    position = jnp.concatenate(
        [batch.position, jnp.take_along_axis(batch.position, at, axis=1)], axis=1
    )
    x = jnp.concatenate([x, patches.reshape(b, -1, d)], axis=1)
    copied = jnp.take_along_axis(batch.modality, at, axis=1)
    tower = jnp.concatenate([batch.modality, jnp.where(own > 0, copied, TEXT)], axis=1)
    hidden, _ = parts.run(params, x, whole, position, keys=drop, tower=tower)
    return hidden[:, :length], hidden[:, length:].reshape(b, slots, p, d)


def pick(e: Estimate, target: str):
    """The form of an estimate that a loss compares."""
    return {"velocity": e.velocity, "data": e.data, "noise": e.noise}[target]
