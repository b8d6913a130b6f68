"""One training step of mmjax, of a hand-written JAX program, and of Hugging Face's torch Chameleon.

    python benchmarks/train_step.py                 (the first two)
    python benchmarks/train_step.py --torch=PYTHON  (all three; PYTHON has torch and transformers)
    python benchmarks/train_step.py --toy --rounds=2  (tiny, to see that it runs)

Shape: width 256, 6 layers, 4 heads of 64, SwiGLU 768, rows of 256 tokens, vocabulary 8,192, batch
8, f32, text only, AdamW with clipping at 1. Every peer lives in a process of its own, warmed up,
under the same allocator settings; they take turns, one step each, A B C C B A ..., so that whatever
else the machine does falls on all alike. The figure is the median over rounds of the ratio of
times to the reference's, with the middle 80 % of rounds.
"""

import argparse
import sys
from functools import partial
from typing import NamedTuple

import numpy as np
import turns


class Size(NamedTuple):
    """Of the model and its rows; heads are `width / heads` wide."""

    width: int = 256
    depth: int = 6
    heads: int = 4
    mlp: int = 768
    length: int = 256
    vocabulary: int = 8192
    batch: int = 8


TOY = Size(width=32, depth=1, heads=2, mlp=48, length=16, vocabulary=64, batch=2)


def tokens(s: Size) -> np.ndarray:
    """[batch, length] int32 random ids."""
    shape = s.batch, s.length
    return np.random.default_rng(0).integers(5, s.vocabulary, shape).astype(np.int32)


def mmjax_step(s: Size):
    """Our step through the public pieces, on one device."""
    import jax

    from mmjax import config, optim
    from mmjax.batch import Batch, Vocabulary
    from mmjax.config import OptimConfig
    from mmjax.mesh import Rules, make_mesh
    from mmjax.models import transfusion
    from mmjax.run import families
    from mmjax.step import init_state, train_step

    base = config.load(str(turns.ROOT / "experiments" / "base.py"))
    d = base.model.decoder
    d.update(width=s.width, depth=s.depth, heads=s.heads, kv_heads=s.heads, mlp=s.mlp)
    d.unroll = s.depth
    # The one slot of pictures, which stays empty, is as small as can be.
    base.model.update(image=4, patch=4)
    base.data.update(image=4, patch=4, length=max(s.length, base.data.length))
    c = config.resolve(base, families()).model
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    model = transfusion.build(c, Vocabulary(s.vocabulary), rules)
    o = OptimConfig("adamw", 1e-3, 10, "cosine", 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.0)
    tx = optim.optimizer(o, 1000)
    zero = np.zeros((s.batch, s.length), np.int32)
    place = np.tile(np.arange(s.length, dtype=np.int32), (s.batch, 1))
    batch = jax.device_put(
        Batch(
            tokens(s), zero, zero + 1, place, zero, np.ones(zero.shape, np.float32),
            np.zeros((s.batch, 1, c.image, c.image, 3), np.uint8),
        )
    )  # fmt: skip
    state = jax.jit(partial(init_state, model, tx, 0.0))(jax.random.key(0))
    step = jax.jit(
        partial(train_step, model, tx, optim.schedule(o, 1000), 0.0, 1, 0), donate_argnums=0
    )

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return run


def plain_step(s: Size):
    """A hand-written program: dict of arrays, unrolled layers, einsum, naive cross-entropy."""
    import jax
    import jax.numpy as jnp

    d, depth, heads, head = s.width, s.depth, s.heads, s.width // s.heads

    def normal(key, *shape):
        return jax.random.normal(key, shape) * shape[0] ** -0.5

    def init(key):
        keys = iter(jax.random.split(key, 64))
        layer = lambda: {  # noqa: E731
            "n1": jnp.ones(d), "n2": jnp.ones(d),
            "qs": jnp.ones(head), "qb": jnp.zeros(head),
            "ks": jnp.ones(head), "kb": jnp.zeros(head),
            "q": normal(next(keys), d, heads, head), "k": normal(next(keys), d, heads, head),
            "v": normal(next(keys), d, heads, head), "o": normal(next(keys), d, d),
            "gate": normal(next(keys), d, s.mlp), "up": normal(next(keys), d, s.mlp),
            "down": normal(next(keys), s.mlp, d),
        }  # fmt: skip
        return {
            "embed": jax.random.normal(next(keys), (s.vocabulary, d)), "norm": jnp.ones(d),
            "head": normal(next(keys), d, s.vocabulary), "layers": [layer() for _ in range(depth)],
        }  # fmt: skip

    def rms(x, scale):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

    def layer_norm(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + bias

    ids = jnp.asarray(tokens(s))
    angle = jnp.arange(s.length)[:, None] * 1e4 ** (-jnp.arange(0, head, 2) / head)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    mask = jnp.tril(jnp.ones((s.length, s.length), bool))

    def rotate(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def loss(p):
        x = p["embed"][ids]
        for w in p["layers"]:
            y = rms(x, w["n1"])
            q, k, v = (jnp.einsum("bld,dhk->blhk", y, w[n]) for n in "qkv")
            q, k = layer_norm(q, w["qs"], w["qb"]), layer_norm(k, w["ks"], w["kb"])
            score = jnp.einsum("blhk,bmhk->bhlm", rotate(q), rotate(k)) * head**-0.5
            a = jax.nn.softmax(jnp.where(mask, score, -1e30))
            y = jnp.einsum("bhlm,bmhk->blhk", a, v).reshape(s.batch, s.length, d)
            x = x + y @ w["o"]
            y = rms(x, w["n2"])
            x = x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
        logits = rms(x, p["norm"])[:, :-1] @ p["head"]
        log_z = jax.nn.logsumexp(logits, -1)
        chosen = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        return (log_z - chosen + 1e-5 * log_z**2).mean()

    def adamw(p, g, m, v, t):
        norm = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(g)))
        g = jax.tree.map(lambda x: x * jnp.minimum(1, 1 / norm), g)
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b * b, v, g)

        def new(p, m, v):
            return p - 1e-3 * ((m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * p)

        return jax.tree.map(new, p, m, v), m, v

    @partial(jax.jit, donate_argnums=0)
    def step(state):
        p, m, v, t = state
        value, g = jax.value_and_grad(loss)(p)
        return (*adamw(p, g, m, v, t + 1.0), t + 1.0), value

    params = init(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(()))

    def run():
        nonlocal state
        state, value = step(state)
        return float(value)

    return run


def torch_step(s: Size):
    """Hugging Face's Chameleon, eager, scaled-dot-product attention, fused AdamW."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=s.vocabulary, hidden_size=s.width, intermediate_size=s.mlp,
        num_hidden_layers=s.depth, num_attention_heads=s.heads, num_key_value_heads=s.heads,
        max_position_embeddings=s.length,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                   "num_embeddings": 8, "embed_dim": 32, "latent_channels": 32},
        vocabulary_map={"<image>": 4},
    )  # fmt: skip
    model = ChameleonForConditionalGeneration(config)
    parameters = [p for n, p in model.named_parameters() if "vqmodel" not in n]
    optimizer = torch.optim.AdamW(parameters, 1e-3, (0.9, 0.95), 1e-8, 0.1, fused=True)
    ids = torch.from_numpy(tokens(s)).long()

    def run():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--torch", help="a Python that has torch and transformers")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--toy", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    if args.worker:
        peers = {"mmjax": mmjax_step, "plain": plain_step, "torch": torch_step}
        turns.worker(peers[args.worker](TOY if args.toy else Size()))
        return
    peers = {
        "plain": ("plain", sys.executable, "launcher"),
        "mmjax": ("mmjax", sys.executable, "launcher"),
        "mmjax, default allocator": ("mmjax", sys.executable, "default"),
    }
    if args.torch:
        peers["torch Chameleon"] = ("torch", args.torch, "launcher")
    more = ["--toy"] * args.toy
    running = {label: turns.launch(__file__, *peer, more) for label, peer in peers.items()}
    turns.table(turns.alternate(running, args.rounds), "plain")


if __name__ == "__main__":
    main()
