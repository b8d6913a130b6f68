"""State and the one train step that serves every family."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from mmjax import losses
from mmjax.batch import Batch
from mmjax.mesh import Rules, abstract, shardings
from mmjax.models.family import Model, Params, merge, split


class State(NamedTuple):
    """What training carries from step to step.

    Attributes:
        step: int32 scalar, updates done.
        params: weights, f32.
        opt: the optimizer's state, of the weights that are trained.
        ema: exponential average of the weights that are trained, or None where none is kept.
    """

    step: jax.Array
    params: Params
    opt: Any
    ema: Params | None


def init_state(model: Model, tx: optax.GradientTransformation, ema: float, key) -> State:
    """A fresh state; a function of the key alone, whatever the mesh."""
    params = model.init(key)
    trained, _ = split(params, model.frozen)
    average = jax.tree.map(jnp.copy, trained) if ema > 0 else None
    return State(jnp.zeros((), jnp.int32), params, tx.init(trained), average)


def abstract_state(
    model: Model, tx: optax.GradientTransformation, ema: float, rules: Rules
) -> State:
    """Shapes, dtypes and shardings of a state: what to initialise or restore into."""
    shapes = jax.eval_shape(lambda k: init_state(model, tx, ema, k), jax.random.key(0))

    # Where two rules share the weights, each one's state holds a mask in place of the other's.
    def masked(x) -> bool:
        return isinstance(x, optax.MaskedNode)

    trained, _ = split(model.specs, model.frozen)
    opt = optax.tree_map_params(
        tx,
        lambda x, spec: x if masked(x) else spec,
        shapes.opt,
        trained,
        transform_non_params=lambda _: P(),
        is_leaf=masked,
    )
    specs = shapes._replace(step=P(), params=model.specs, opt=opt, ema=trained if ema > 0 else None)
    return abstract(shapes, shardings(rules.mesh, specs))


def _microbatches(x, count: int):
    """[b, ...] -> [count, b / count, ...], every `count`-th row to one: each device keeps its own.

    Row r goes to microbatch r % count, so a contiguous split over devices stays a split.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)


def gradients(model: Model, params: Params, batch: Batch, keys, accumulate: int):
    """Gradient of the total loss by what is trained, and the summed terms, over `accumulate` parts.

    Each microbatch is divided by the counts of the whole batch, so the result is the gradient of
    the big batch whatever the masks are; averaging means would not be.
    """
    parts = jax.tree.map(lambda x: _microbatches(x, accumulate), (batch, keys))
    trained, held = split(params, model.frozen)

    def count(part):
        # Only the counts are used, so the compiler drops the model itself from this pass.
        return {name: t.count for name, t in model.loss(params, *part).items()}

    if accumulate == 1:
        counts = None
    else:
        counts = jax.tree.map(lambda c: c.sum(0), jax.lax.map(count, parts))

    def objective(p, part):
        terms = model.loss(merge(p, held), *part)
        whole = terms
        if counts is not None:
            whole = {n: losses.Term(t.sum, counts[n]) for n, t in terms.items()}
        return losses.total(whole, model.weights), terms

    grad = jax.grad(objective, has_aux=True)
    if accumulate == 1:
        return grad(trained, (batch, keys))

    def body(carry, part):
        return jax.tree.map(jnp.add, carry, grad(trained, part)), None

    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad, trained, (batch, keys)))
    return jax.lax.scan(body, start, parts)[0]


def train_step(
    model: Model,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    ema: float,
    accumulate: int,
    seed: int,
    state: State,
    batch: Batch,
) -> tuple[State, dict[str, jax.Array]]:
    """One update.

    Args:
        model: any family. tx: its optimizer. rate: learning rate by step, for the log.
        ema: decay of the averaged weights. accumulate: microbatches.
        seed: with `state.step` and the row it determines all randomness, so nothing is saved.
        state: donated by the caller's jit.
        batch: b rows.

    Returns:
        The new state, and scalars: `loss`, each term's mean, and norms.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    keys = jax.random.split(key, batch.tokens.shape[0])
    grads, terms = gradients(model, state.params, batch, keys, accumulate)
    # Our own code keeps dtypes strictly apart; optax's rules and schedules mix floats and integers.
    trained, held = split(state.params, model.frozen)
    with jax.numpy_dtype_promotion("standard"):
        learning_rate = rate(state.step)
        updates, opt = tx.update(grads, state.opt, trained)
    params = optax.apply_updates(trained, updates)
    if model.after is not None:
        params = model.after(trained, params, terms)
    average = state.ema
    if average is not None:
        # Young averages forget faster, or the random start would stay in them for long.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema, (age + 1.0) / (age + 10.0))
        average = optax.incremental_update(params, average, 1.0 - decay)
    watched = {} if model.watch is None else dict(model.watch(grads))
    metrics = (
        losses.means(terms)
        | watched
        | {
            "loss": losses.total(terms, model.weights),
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
            "lr": learning_rate,
        }
    )
    return State(state.step + 1, merge(params, held), opt, average), metrics
