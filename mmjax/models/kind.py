"""Pictures of several kinds in one model: other shapes of one modality, and other modalities.

Each kind has the decoder's two ends in its own shape, its own path, target, times and term of the
loss; attention and masks follow from `Batch.image` and know nothing of it. `parts.kinds` holds a
view of the family's `Parts` for each kind, the default first, in which `config` is a `Kind`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import diffusion
from mmjax.batch import Batch, precedes_text, slot_columns, slot_weight, target_weight
from mmjax.codecs.autoencoder import Codec, CodecConfig
from mmjax.error import UserError
from mmjax.kind import modalities
from mmjax.layers import unet
from mmjax.layers.patch import collect
from mmjax.layers.weight import Layer
from mmjax.losses import Terms, add, flow_loss
from mmjax.mesh import Rules
from mmjax.models import signal
from mmjax.models.denoise import beside, check_numbers, inputs, noise_level, pick, wide
from mmjax.models.patches import PatchIn, PatchOut
from mmjax.models.tokens import token_terms
from mmjax.values import build

SHARED = ("height", "width", "like")  # what a kind like another may say itself


@dataclass(frozen=True)
class Kind:
    """One kind of pictures; fields as `transfusion.Config` has them, but for the following.

    Attributes:
        height, width: in pixels. like: "image" if it shares the default's weights, "" if not.
        codec: the model's, for the default and what is like it; a modality of its own is pixels.
        modality: `Batch.modality` of its positions, which follows from what all kinds are like.
    """

    height: int
    width: int
    patch: int
    like: str
    codec: CodecConfig | None
    unet: int
    path: str
    prediction: str
    target: str
    image_weight: float
    time_mean: float
    time_std: float
    time_shift: float
    signal_mean: float
    signal_std: float
    context: str
    context_time: float
    picture_mask: str
    modality: int

    @property
    def cells(self) -> int:
        """Side of a patch in numbers of the signal."""
        return self.patch // (self.codec.factor if self.codec else 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the signal."""
        factor, c = (self.codec.factor, self.codec.quantiser.width) if self.codec else (1, 3)
        return (self.height // factor, self.width // factor, c)

    @property
    def tokens(self) -> int:
        """Positions a picture takes, p."""
        return (self.height // self.patch) * (self.width // self.patch)


def resolve(c) -> tuple[Kind, ...]:
    """All kinds of a `transfusion.Config`, the default first.

    Raises:
        UserError: naming field, value and remedy.
    """
    own = {f.name: getattr(c, f.name) for f in fields(Kind) if hasattr(c, f.name)}
    base = own | {"height": c.image, "width": c.image, "like": ""}
    found = [Kind(**base)]
    for name, said in c.kinds.items():
        plain = base | {"like": "image", "codec": None} | dict(said)
        k = build(Kind, plain, f"config.model.kinds.{name}")
        check(c, name, k, said)
        k = replace(k, codec=c.codec if k.like else None)
        check_unet(k, f"model.kinds.{name}")
        found.append(k)
    numbers = modalities([k.like for k in found[1:]])
    return tuple(replace(k, modality=n) for k, n in zip(found, numbers, strict=True))


def others(c) -> list[tuple[str, Kind]]:
    """Name and kind of all but the default."""
    return list(zip(c.kinds, resolve(c)[1:], strict=True)) if c.kinds else []


def check(c, name: str, k: Kind, said) -> None:
    """Checks one kind against the rest.

    Raises:
        UserError: naming field, value and remedy.
    """
    at = f"model.kinds.{name}"
    diffusion.check_names(k.path, k.prediction, k.target, at)
    check_numbers(k, at)
    if k.like not in ("", "image"):
        raise UserError(f"{at}.like={k.like!r} is unknown; have: 'image', ''")
    if min(k.height, k.width, k.patch) < 1 or k.height % k.patch or k.width % k.patch:
        raise UserError(f"{at}.patch={k.patch} must divide height={k.height} and width={k.width}")
    if k.image_weight < 0:
        raise UserError(f"{at}.image_weight={k.image_weight} must be at least 0")
    if "modality" in said:
        raise UserError(f"{at}.modality={said['modality']!r} follows from like; leave it out")
    for field in ("context", "context_time", "picture_mask", "codec"):
        if field in said:
            raise UserError(f"{at}.{field}={said[field]!r} is one for all kinds; set model.{field}")
    if k.like and (
        wrong := [f for f in said if f not in SHARED and said[f] != getattr(c, f, None)]
    ):
        raise UserError(
            f"{at}.{wrong[0]}={said[wrong[0]]!r} needs weights of its own; give like='' or leave "
            f"it out"
        )
    if c.codec and not k.like and not {"signal_mean", "signal_std"} <= set(said):
        raise UserError(
            f"{at} is pixels, but model.signal_mean and model.signal_std are of latents; give it "
            f"its own"
        )


def check_unet(k, at: str) -> None:
    """Checks the U-Net of a configuration or kind, which lies at `at`.

    Raises:
        UserError: naming field, value and remedy.
    """
    if k.unet < 0:
        raise UserError(f"{at}.unet={k.unet} must be at least 0, which is no U-Net")
    if k.unet and (k.cells & (k.cells - 1) or k.cells < 2):
        raise UserError(
            f"{at}.unet={k.unet} needs patches of 2, 4, 8, ... places a side, not {k.cells}; "
            f"change {at}.patch or give {at}.unet=0"
        )


def numbers(batch: Batch):
    """[b, i] int32: the kind of each slot."""
    if batch.kind is None:
        return jnp.zeros(batch.pixels.shape[:2], jnp.int32)
    return jnp.asarray(batch.kind)


def chosen(number, made):
    """Of arrays [b, i, ...], one a kind, each slot's own."""
    out = made[0]
    for n, x in enumerate(made[1:], start=1):
        out = jnp.where((number == n).reshape(number.shape + (1,) * (x.ndim - 2)), x, out)
    return out


def signal_of(k: Kind, codec: Codec | None, params, batch: Batch):
    """A batch's pictures as if all were of one kind, standardised; [b, i, h, w, c] f32.

    Those of other kinds are cut or hold what is beside them: their numbers are never used.
    """
    return signal.of_pixels(k, codec, params, batch.pixels[:, :, : k.height, : k.width])


def modules(c, at: tuple[Rules, str]) -> dict[str, Layer]:
    """Both ends of each kind but the default, by name; `at`: (rules, dtype)."""
    found: dict[str, Layer] = {}
    for name, k in others(c):
        found[f"patch_in_{name}"] = PatchIn(*at, k.unet, k.cells, k.tokens, c.decoder.width)
        found[f"patch_out_{name}"] = PatchOut(*at, k.unet, k.cells, k.shape)
    return found


def start(c, make: Callable, params: dict[str, Any], rows: int) -> None:
    """Makes the kinds' weights in `params` by make(name, *inputs); see `transfusion.boxed_init`."""
    for name, k in others(c):
        first = f"patch_in_{name}"
        patches, kept = make(first, jnp.zeros((rows, 1, *k.shape)), jnp.zeros((rows, 1)))
        if k.like:  # of its own it has only the table of places
            params[first] = {"place": params[first]["place"]}
        else:
            make(f"patch_out_{name}", patches, kept)


def views(c, parts, piece: Callable):
    """`parts` for pictures of each kind, the default first; `piece`: name -> its function."""

    def one(name: str, k: Kind):
        ends = {}
        if name:
            ends = {n: own(piece(f"{n}_{name}"), n, name, k) for n in ("patch_in", "patch_out")}
        codec = parts.codec if k.codec else None
        about = {"signal": partial(signal_of, k, codec), "codec": codec}
        about["picture"] = partial(signal.to_picture, k, codec)
        return parts._replace(config=k, **ends, **about)

    def own(run, end: str, name: str, k: Kind):
        """One end of a kind; of one like the default it reads the default's weights."""
        at = f"{end}_{name}"
        if not k.like:
            return run
        return lambda params, *args: run({at: {**params[end], **params.get(at, {})}}, *args)

    return tuple(one(n, k) for n, k in zip(("", *c.kinds), c.resolved, strict=True))


def with_views(c, parts, piece: Callable):
    """`parts` that read pictures of every kind, and hold a view for each."""

    def clean(params, batch):
        return clean_inputs(whole, params, batch)

    seen = tuple(view._replace(clean=clean) for view in views(c, parts, piece))
    whole = parts._replace(kinds=seen, signal=seen[0].signal, clean=clean)
    return whole


def embedded(parts, params, batch: Batch, signals, t):
    """Each kind's signals [b, i, h, w, c] at times t [b, i].

    Returns:
        (each slot's patches by its own kind [b, i, max p, d], what each kind's patch_out needs).
    """
    most = max(view.config.tokens for view in parts.kinds)
    made = [v.patch_in(params, x, t) for v, x in zip(parts.kinds, signals, strict=True)]
    patches = [jnp.pad(x, ((0, 0), (0, 0), (0, most - x.shape[2]), (0, 0))) for x, _ in made]
    return chosen(numbers(batch), patches), [kept for _, kept in made]


def clean_inputs(parts, params, batch: Batch):
    """Decoder inputs with every picture given as it is, at t = 1."""
    signals = [view.signal(params, batch) for view in parts.kinds]
    ones = jnp.ones(batch.pixels.shape[:2])
    return inputs(parts, params, batch, embedded(parts, params, batch, signals, ones)[0])


def times(parts, batch: Batch, keys):
    """t [b, i] of every slot by its kind's own law; keys [b]."""
    before = precedes_text(batch, parts.vocabulary)
    drawn = [noise_level(view.config, keys, before) for view in parts.kinds]
    return chosen(numbers(batch), drawn)


def loss_at(c, parts, params, batch: Batch, t, noise, drop) -> Terms:
    """All losses of a batch at given times; the arguments are those of `transfusion.loss_at`.

    Pictures of the default kind and of those like it have one mean, "image"; the terms of those
    like it are beside it to be looked at. A modality of its own has a mean of its own. Noise is
    drawn for the whole canvas and cut, so that a picture's is that of its place.
    """
    kinds = [view.config for view in parts.kinds]
    canvas = (*batch.pixels.shape[1:4], max(k.shape[2] for k in kinds))
    noise = jax.vmap(lambda key: jax.random.normal(key, canvas))(noise)
    clean = [view.signal(params, batch) for view in parts.kinds]
    noises = [noise[..., : k.shape[0], : k.shape[1], : k.shape[2]] for k in kinds]
    noisy = [
        diffusion.mix(k.path, x, e, wide(t)) for k, x, e in zip(kinds, clean, noises, strict=True)
    ]
    patches, kept = embedded(parts, params, batch, noisy, t)
    drop = drop if c.decoder.dropout > 0 else None
    if c.context == "clean":
        x = clean_inputs(parts, params, batch)
        hidden, found = beside(parts, params, batch, x, patches, drop)
    else:
        x = inputs(parts, params, batch, patches)
        at = parts.mask(batch), batch.position
        hidden, _ = parts.run(params, x, *at, keys=drop, tower=batch.modality)
        found = collect(hidden, batch.image, t.shape[1], patches.shape[2])
    weight = target_weight(batch)[..., None]
    head = parts.head(params)
    terms = token_terms("text", ("text",), hidden, head, batch, weight, c.z_weight)
    for n, (name, k) in enumerate(zip(("", *c.kinds), kinds, strict=True)):
        output = parts.kinds[n].patch_out(params, found[:, :, : k.tokens], kept[n])
        made = diffusion.estimate(k.path, k.prediction, output, noisy[n], wide(t))
        true = diffusion.aim(k.path, k.prediction, clean[n], noises[n], noisy[n], wide(t))
        mine = jnp.where(numbers(batch) == n, slot_weight(batch), 0.0)
        term = flow_loss(pick(made, k.target), pick(true, k.target), mine)
        if n:
            terms[f"image_{name}"] = term
        if k.like:
            terms["image"] = add(terms["image"], term)
        elif not n:
            terms["image"] = term
    return terms


def patch_flops(c, batch: Batch) -> float:
    """FLOPs of both ends for the pictures of a host batch, each with its kind's own."""
    used = np.asarray(slot_columns(jnp.asarray(batch.image), batch.pixels.shape[1])[1])
    counts = [(used & (np.asarray(numbers(batch)) == n)).sum() for n in range(len(c.kinds) + 1)]
    return float(sum(n * ends_flops(c, k) for n, k in zip(counts, c.resolved, strict=True)))


def ends_flops(c, k: Kind) -> float:
    """FLOPs of both ends for one picture."""
    if k.unet:
        return unet.flops(k.unet, k.cells, c.decoder.width, k.shape)
    return 4.0 * k.tokens * k.cells**2 * k.shape[-1] * c.decoder.width
