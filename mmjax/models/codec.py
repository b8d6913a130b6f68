"""Training an image codec: a family like any other, whose loss is that of VQGAN.

Esser et al. 2021 (arXiv 2012.09841):
    nll = |x - x'| + w_p perceptual(x, x'),
    loss = nll + bottleneck + d_w (-mean D(x')),   d_w = |grad nll| / |grad gan| at the last layer,
and beside it the discriminator's hinge loss. Both players' gradients are taken in one pass: each
term holds the other player's weights fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import Batch, Vocabulary, slot_columns
from mmjax.codecs import autoencoder, discriminator, measure, perceptual, quantise
from mmjax.codecs.autoencoder import Codec, CodecConfig
from mmjax.codecs.discriminator import PatchGAN, adaptive_weight, hinge
from mmjax.error import UserError
from mmjax.layers.patch import to_signal
from mmjax.layers.weight import specs_of, unboxed
from mmjax.losses import Term, Terms
from mmjax.mesh import Rules
from mmjax.models.family import Abilities, Model


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        codec: the codec.
        absolute, squared: weights of the mean absolute and mean squared error of pixels in [-1, 1].
        perceptual: weight of the distance of features; 0 needs no feature network. features: the
            network, of `codecs.perceptual.NETWORKS`.
        adversarial: weight of the discriminator's say beside the adaptive one; 0 has none.
        adversarial_start: first step it counts. critic_width, critic_depth: of the discriminator.
    """

    codec: CodecConfig
    absolute: float
    squared: float
    perceptual: float
    adversarial: float
    adversarial_start: int
    critic_width: int
    critic_depth: int
    features: str = "efficientnet_lite0"

    def __post_init__(self):
        """Checks that the network is known, and that the discriminator has something to see."""
        if self.features not in perceptual.NETWORKS:
            have = ", ".join(perceptual.NETWORKS)
            raise UserError(f"model.features={self.features!r} is unknown; have: {have}")
        least = discriminator.smallest(self.critic_depth)
        if self.adversarial and self.codec.image < least:
            raise UserError(
                f"model.critic_depth={self.critic_depth} needs pictures of {least} pixels; "
                f"model.codec.image={self.codec.image}"
            )

    @property
    def image(self) -> int:
        """Side of a picture in pixels."""
        return self.codec.image


class Parts(NamedTuple):
    """The family's pieces.

    Attributes:
        config, vocabulary: what the model was built with.
        codec: its functions, of params["codec"].
        critic: (params["critic"], signal) -> [n, h', w', 1].
    """

    config: Config
    vocabulary: Vocabulary
    codec: Codec
    critic: Callable


def loss(c: Config, parts: Parts, params, batch: Batch, keys) -> Terms:
    """All losses of the pictures of a batch, and what is logged beside them."""
    codec, own = parts.codec, params["codec"]
    x = to_signal(batch.pixels).reshape(-1, *batch.pixels.shape[2:])
    _, used = slot_columns(batch.image, batch.pixels.shape[1])
    weight = used.reshape(-1).astype(jnp.float32)
    slots = jax.vmap(lambda key: jax.random.split(key, used.shape[1]))(keys).reshape(-1)
    found = codec.bottleneck(own, codec.encode(own, x), weight, slots)
    features = codec.features(own, found.values)
    made = codec.last(own, features)

    def mean(each) -> Term:
        return Term(jnp.sum(weight * each), jnp.sum(weight))

    def nll(y):
        value = c.absolute * measure.absolute(x, y) + c.squared * ((x - y) ** 2).mean((1, 2, 3))
        if c.perceptual:
            network, held = perceptual.NETWORKS[c.features], params["perceptual"]
            value = value + c.perceptual * perceptual.distance(network, held, y, x)
        return value

    terms = {"reconstruction": mean(nll(made))} | found.terms | found.stats
    if c.adversarial:
        terms |= adversarial(c, parts, params, features, (x, made), nll, mean)
    made = jnp.clip(jax.lax.stop_gradient(made), -1.0, 1.0)
    for name in ("absolute", "psnr", "ssim"):
        terms[name] = mean(getattr(measure, name)(x, made))
    return terms | usage(c.codec, own, found)


def adversarial(c: Config, parts: Parts, params, features, pictures, nll, mean) -> Terms:
    """The generator's and the discriminator's terms; features are what the last layer reads."""
    stop = jax.lax.stop_gradient
    x, made = pictures
    critic, last = params["critic"], stop(params["codec"]["last"])

    def say(y):
        return discriminator.generator_loss(parts.critic(stop(critic), y))

    def by_last_layer(function):
        # Only the last kernel varies, so one short backward pass is all this costs.
        def value(w):
            y = parts.codec.last({"last": {**last, "w": w}}, stop(features))
            term = mean(function(y))
            return term.sum / jnp.maximum(term.count, 1.0)

        return jax.grad(value)(last["w"])

    balance = adaptive_weight(by_last_layer(nll), by_last_layer(say))
    on = (params["clock"] >= c.adversarial_start).astype(jnp.float32)
    real, fake = parts.critic(critic, x), parts.critic(critic, stop(made))
    told = mean(say(made))
    return {
        "adversarial": Term(stop(balance) * c.adversarial * on * told.sum, told.count),
        "critic": Term(on * mean(hinge(real, fake)).sum, told.count),
        "critic_balance": Term(stop(balance), jnp.ones(())),
    }


def usage(c: CodecConfig, params, found: quantise.Quantised) -> Terms:
    """How the codes of this batch were used: perplexity, share in use; and how many are dead.

    Dead is a code whose average number of uses a step falls below `restart` in this one (it then
    starts anew), or below 0.01 where codes do not restart; averages forget slowly, so without
    restarts it takes some 500 steps until any code can be dead. Where a batch is taken in parts,
    these are means over what each part alone would say.
    """
    if "counts" not in found.stats:
        return {}
    counts = jax.lax.stop_gradient(found.stats["counts"].sum)
    one = jnp.ones(())
    terms = {
        "perplexity": Term(quantise.perplexity(counts).mean(), one),
        "codes_used": Term((counts > 0).mean(), one),
    }
    if "book" in params:
        g = c.quantiser.memory
        average = g * params["book"]["counts"] + (1 - g) * counts
        dead = (average < (c.quantiser.restart or 0.01)).sum().astype(jnp.float32)
        terms["codes_dead"] = Term(jax.lax.stop_gradient(dead), one)
    return terms


def after(c: Config, old, new, terms: Terms):
    """Moves the codebook, and the clock by one step."""
    changed = dict(new)
    if c.codec.quantiser.booked:
        book = quantise.update(c.codec.quantiser, old["codec"]["book"], new["codec"]["book"], terms)
        changed["codec"] = {**new["codec"], "book": book}
    if c.adversarial:
        changed["clock"] = old["clock"] + 1.0
    return changed


def boxed_init(key, c: Config, layers, critic: PatchGAN):
    """All parameters; the feature network's are loaded from its package."""
    first, second = jax.random.split(key)
    params = {"codec": autoencoder.boxed_init(first, c.codec, layers)}
    if c.adversarial:
        x = jnp.zeros((1, c.image, c.image, 3))
        params |= {"critic": critic.init(second, x)["params"], "clock": jnp.zeros(())}
    if c.perceptual:
        params["perceptual"] = jax.tree.map(jnp.asarray, perceptual.NETWORKS[c.features].load())
    return params


def forward_flops(c: Config, batch: Batch) -> float:
    """Forward FLOPs of encoder and decoder over a host batch's pictures: their convolutions."""
    n = float(batch.image.max(axis=1).sum())
    return n * autoencoder.flops(c.codec)


def abilities(c: Config) -> Abilities:
    """What a trained one can do: bring images back."""
    return Abilities(reads=False, evals=("reconstruction", "frechet"))


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = autoencoder.modules(c.codec, rules)
    critic = PatchGAN(rules, c.codec.dtype, c.critic_width, c.critic_depth)
    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        codec=autoencoder.build(c.codec, rules),
        critic=lambda params, x: critic.apply({"params": params}, x),
    )
    names = ("reconstruction", *quantise.term_names(c.codec.quantiser))
    if c.adversarial:
        names += ("adversarial", "critic")
    start = partial(boxed_init, c=c, layers=layers, critic=critic)
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(loss, c, parts),
        flops=partial(forward_flops, c),
        weights=dict.fromkeys(names, 1.0),
        parts=parts,
        frozen=("perceptual",) if c.perceptual else (),
        after=partial(after, c),
    )
