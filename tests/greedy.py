"""Rows that an imported model goes on from, the likeliest word each time, by the engine."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.sample.engine import Options, Plan, State, advance, begin
from mmjax.sample_config import Choice

COLD = Choice(0.0, 0, 1.0, 0.0, 1.0)


def continued(parts, params, batch, count: int) -> State:
    """`count` words behind each row, never an end or a picture; at highest precision."""
    rows = len(batch.tokens)
    options = Options(count, count, 0, COLD, COLD)
    fields = dict(left=0, close=-1, pictures=0, until=0, limit=count, columns=999, words=99)
    columns = {name: np.full(rows, x, np.int32) for name, x in fields.items()}
    plan = Plan(**columns, ends=np.full((rows, 1), -1))
    keys = jax.random.split(jax.random.key(0), rows)
    with jax.default_matmul_precision("highest"):
        state = jax.jit(partial(begin, parts, options=options))(params, batch, plan)
        go = jax.jit(partial(advance, parts, options=options))
        return go(params, state, plan, keys, jnp.int32(count))
