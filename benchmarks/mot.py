"""One training step with weights of one modality each, against the dense decoder.

    python benchmarks/mot.py [--batch=8] [--width=256] [--depth=6] [--rounds=12]

Shape: 6 layers, heads of 64, SwiGLU 43/16 as wide, rows of 256 tokens, vocabulary 2,048, f32,
codes as pictures of 64; everything untied. "select" multiplies every token by the weights
of both towers, "grouped" by those of its own. Peers take turns, see turns.py.
"""

import argparse
import sys
from functools import partial

import numpy as np
import turns

LENGTH, VOCAB, PICTURE = 256, 2048, 64
UNTIE = ("qkv", "o", "qk_norm", "attn_norm", "ffn", "ffn_norm", "final_norm")


def rows(count: int):
    """Rows of two pictures of 64 codes each, and words: half of the tokens each."""
    from mmjax.batch import Batch

    flat = np.zeros((count, LENGTH), np.int32)
    place = flat + np.arange(LENGTH, dtype=np.int32)
    picture = ((place // PICTURE) % 2).astype(np.int32)
    slot = picture * (1 + place // (2 * PICTURE))
    tokens = np.random.default_rng(0).integers(9, VOCAB, flat.shape).astype(np.int32)
    pixels = np.zeros((count, 2, 0, 0, 3), np.uint8)
    ones = np.ones(flat.shape, np.float32)
    return Batch(tokens, picture, flat + 1, place, slot, ones, pixels)


def step(count: int, width: int, depth: int, **decoder):
    """A train step of Chameleon on `count` rows."""
    import jax

    from mmjax import config, optim
    from mmjax.batch import Vocabulary
    from mmjax.config import OptimConfig
    from mmjax.mesh import Rules, make_mesh
    from mmjax.models import chameleon
    from mmjax.run import families
    from mmjax.step import init_state, train_step

    base = config.load(str(turns.ROOT / "experiments" / "chameleon_scenes.py"))
    heads = dict(heads=width // 64, kv_heads=width // 64)
    shape = dict(width=width, depth=depth, mlp=43 * width // 16, unroll=1)
    base.model.decoder.update(heads | shape | decoder)
    # The codec has nothing to do here: as small as 64 codes a picture allow.
    base.model.codec.update(image=8, multipliers=(1,), channels=8, blocks=1)
    base.data.update(image=8, patch=1)
    c = config.resolve(base, families()).model
    model = chameleon.build(
        c, Vocabulary(VOCAB, codes=VOCAB - c.codes, code_count=c.codes),
        Rules(make_mesh(1, 1, 1, jax.devices()[:1])),
    )  # fmt: skip
    o = OptimConfig("adamw", 1e-3, 10, "cosine", 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.0)
    tx = optim.optimizer(o, 1000)
    state = jax.jit(partial(init_state, model, tx, 0.0))(jax.random.key(0))
    update = jax.jit(
        partial(train_step, model, tx, optim.schedule(o, 1000), 0.0, 1, 0), donate_argnums=0
    )
    batch = jax.device_put(rows(count))

    def run():
        nonlocal state
        state, metrics = update(state, batch)
        return float(metrics["loss"])

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--width", type=int, default=256, help="of the decoder, a multiple of 64")
    parser.add_argument("--depth", type=int, default=6, help="of the decoder")
    args = parser.parse_args()
    peers = {
        "dense": {},
        "select": dict(towers=2, untie=UNTIE),
        "grouped": dict(towers=2, untie=UNTIE, grouped=True),
    }
    if args.worker:
        turns.worker(step(args.batch, args.width, args.depth, **peers[args.worker]))
        return
    more = (f"--batch={args.batch}", f"--width={args.width}", f"--depth={args.depth}")
    running = {
        name: turns.launch(__file__, name, sys.executable, "launcher", more) for name in peers
    }
    turns.table(turns.alternate(running, args.rounds), "dense")


if __name__ == "__main__":
    main()
