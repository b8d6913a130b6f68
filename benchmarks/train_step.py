"""One training step of mmjax, of a hand-written JAX program, and of Hugging Face's torch Chameleon.

    python benchmarks/train_step.py                 (the first two)
    python benchmarks/train_step.py --torch=PYTHON  (all three; PYTHON has torch and transformers)

Shape: width 256, 6 layers, 4 heads of 64, SwiGLU 768, rows of 256 tokens, vocabulary 8,192, batch
8, f32, text only, AdamW with clipping at 1. Every peer lives in a process of its own, warmed up,
under the same allocator settings; they take turns, one step each, A B C C B A ..., so that whatever
else the machine does falls on all alike. The figure is the median over rounds of the ratio of
times to the reference's, with the middle 80 % of rounds.
"""

import argparse
import sys
from functools import partial

import numpy as np
import turns

D, DEPTH, HEADS, HEAD, MLP, LENGTH, VOCAB, BATCH = 256, 6, 4, 64, 768, 256, 8192, 8


def tokens() -> np.ndarray:
    """[8, 256] int32 random ids."""
    return np.random.default_rng(0).integers(5, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def mmjax_step():
    """Our step through the public pieces, on one device."""
    import jax

    from mmjax import config, optim
    from mmjax.batch import Batch, Vocabulary
    from mmjax.config import OptimConfig
    from mmjax.mesh import Rules, make_mesh
    from mmjax.models import transfusion
    from mmjax.run import families
    from mmjax.step import init_state, train_step

    base = config.load(str(turns.ROOT / "experiments" / "quickstart.py"))
    d = base.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp, d.unroll = D, DEPTH, HEADS, HEADS, MLP, DEPTH
    c = config.resolve(base, families()).model
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    model = transfusion.build(c, Vocabulary(VOCAB), rules)
    o = OptimConfig("adamw", 1e-3, 10, "cosine", 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.0)
    tx = optim.optimizer(o, 1000)
    zero = np.zeros((BATCH, LENGTH), np.int32)
    place = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    batch = jax.device_put(
        Batch(
            tokens(), zero, zero + 1, place, zero, np.ones((BATCH, LENGTH), np.float32),
            np.zeros((BATCH, 1, 4, 4, 3), np.uint8),
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


def plain_step():
    """A hand-written program: dict of arrays, unrolled layers, einsum, naive cross-entropy."""
    import jax
    import jax.numpy as jnp

    def normal(key, *shape):
        return jax.random.normal(key, shape) * shape[0] ** -0.5

    def init(key):
        keys = iter(jax.random.split(key, 64))
        layer = lambda: {  # noqa: E731
            "n1": jnp.ones(D), "n2": jnp.ones(D),
            "qs": jnp.ones(HEAD), "qb": jnp.zeros(HEAD), "ks": jnp.ones(HEAD), "kb": jnp.zeros(HEAD), # noqa: E501
            "q": normal(next(keys), D, HEADS, HEAD), "k": normal(next(keys), D, HEADS, HEAD),
            "v": normal(next(keys), D, HEADS, HEAD), "o": normal(next(keys), D, D),
            "gate": normal(next(keys), D, MLP), "up": normal(next(keys), D, MLP),
            "down": normal(next(keys), MLP, D),
        }  # fmt: skip
        return {
            "embed": jax.random.normal(next(keys), (VOCAB, D)), "norm": jnp.ones(D),
            "head": normal(next(keys), D, VOCAB), "layers": [layer() for _ in range(DEPTH)],
        }  # fmt: skip

    def rms(x, scale):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

    def layer_norm(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + bias

    ids = jnp.asarray(tokens())
    angle = jnp.arange(LENGTH)[:, None] * 1e4 ** (-jnp.arange(0, HEAD, 2) / HEAD)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))

    def rotate(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def loss(p):
        x = p["embed"][ids]
        for w in p["layers"]:
            y = rms(x, w["n1"])
            q, k, v = (jnp.einsum("bld,dhk->blhk", y, w[n]) for n in "qkv")
            q, k = layer_norm(q, w["qs"], w["qb"]), layer_norm(k, w["ks"], w["kb"])
            s = jnp.einsum("blhk,bmhk->bhlm", rotate(q), rotate(k)) * HEAD**-0.5
            a = jax.nn.softmax(jnp.where(mask, s, -1e30))
            y = jnp.einsum("bhlm,bmhk->blhk", a, v).reshape(BATCH, LENGTH, D)
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


def torch_step():
    """Hugging Face's Chameleon, eager, scaled-dot-product attention, fused AdamW."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=VOCAB, hidden_size=D, intermediate_size=MLP, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                   "num_embeddings": 8, "embed_dim": 32, "latent_channels": 32},
        vocabulary_map={"<image>": 4},
    )  # fmt: skip
    model = ChameleonForConditionalGeneration(config)
    parameters = [p for n, p in model.named_parameters() if "vqmodel" not in n]
    optimizer = torch.optim.AdamW(parameters, 1e-3, (0.9, 0.95), 1e-8, 0.1, fused=True)
    ids = torch.from_numpy(tokens()).long()

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
    args = parser.parse_args()
    if args.worker:
        peers = {"mmjax": mmjax_step, "plain": plain_step, "torch": torch_step}
        turns.worker(peers[args.worker]())
        return
    peers = {
        "plain": ("plain", sys.executable, "launcher"),
        "mmjax": ("mmjax", sys.executable, "launcher"),
        "mmjax, default allocator": ("mmjax", sys.executable, "default"),
    }
    if args.torch:
        peers["torch Chameleon"] = ("torch", args.torch, "launcher")
    running = {label: turns.launch(__file__, *peer) for label, peer in peers.items()}
    turns.table(turns.alternate(running, args.rounds), "plain")


if __name__ == "__main__":
    main()
