"""AdamW, its schedule, and what decays."""

import jax
import optax

from mmjax.config import OptimConfig
from mmjax.error import UserError

STACKED = "blocks"  # parameters below this name carry the layers on axis 0


def schedule(c: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the decay, over `steps` updates.

    Raises:
        UserError: for an unknown decay.
    """
    rest = max(steps - c.warmup, 1)
    decays = {
        "cosine": optax.cosine_decay_schedule(c.peak, rest, alpha=c.floor),
        "linear": optax.linear_schedule(c.peak, c.peak * c.floor, rest),
        "constant": optax.constant_schedule(c.peak),
    }
    if c.decay not in decays:
        raise UserError(f"optim.decay={c.decay!r} is unknown; have: {', '.join(decays)}")
    # The first update uses step 0: start above zero, or it would be lost.
    warm = optax.linear_schedule(c.peak / (c.warmup + 1), c.peak, c.warmup)
    return optax.join_schedules([warm, decays[c.decay]], [c.warmup])


def decays(params):
    """Params-shaped tree of bool: matrices decay, scales and biases do not."""

    def rank(path, x):
        stacked = any(getattr(p, "key", None) == STACKED for p in path)
        return x.ndim - stacked >= 2 and x.shape[stacked] > 1

    return jax.tree_util.tree_map_with_path(rank, params)


def optimizer(c: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, AdamW, schedule."""
    return optax.chain(
        optax.clip_by_global_norm(c.clip),
        optax.adamw(
            schedule(c, steps),
            b1=c.b1,
            b2=c.b2,
            eps=c.eps,
            weight_decay=c.weight_decay,
            mask=decays,
        ),
    )
