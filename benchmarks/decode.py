"""Generating text and pictures: the interleaved engine beside a loop on the host, and torch.

    python benchmarks/decode.py                 (mmjax alone)
    python benchmarks/decode.py --torch=PYTHON  (also Hugging Face; PYTHON has torch, transformers)
    python benchmarks/decode.py --toy --rounds=2  (tiny, to see that it runs)

Text: a prompt of 32 tokens and 96 new ones, greedy, in the shape of `train_step.py`. "host loop" is
the same decoder and cache with one compiled step a token, whose token the host reads each time.
torch is Hugging Face's Chameleon, `generate`, eager, which cannot draw. Pictures: 64 codes behind a
prompt of 32 tokens, guided (two streams). Peers take turns as in `turns.py`.
"""

import argparse
import sys
from functools import partial
from typing import NamedTuple

import numpy as np
import turns

VOCAB, PROMPT, CODES = 8192, 32, 64


class Size(NamedTuple):
    """Of the decoder, which has four heads, and how many tokens of text it writes."""

    width: int = 256
    depth: int = 6
    mlp: int = 768
    new: int = 96


TOY = Size(width=32, depth=1, mlp=48, new=4)


def prompt_ids(batch: int) -> np.ndarray:
    """[b, 32] int32 random ids of words."""
    return np.random.default_rng(0).integers(20, 7000, (batch, PROMPT)).astype(np.int32)


def model(s: Size):
    """A Chameleon with random weights, and the engine's arguments."""
    import jax

    from mmjax import config
    from mmjax.batch import Vocabulary
    from mmjax.mesh import Rules, make_mesh
    from mmjax.models import chameleon
    from mmjax.run import families

    base = config.load(str(turns.ROOT / "experiments" / "chameleon_scenes.py"))
    d = base.model.decoder
    d.update(width=s.width, depth=s.depth, heads=4, kv_heads=4, mlp=s.mlp, unroll=s.depth)
    base.model.codec.quantiser.codes = 512
    # The codec has nothing to do here: as small as 64 codes a picture allow.
    base.model.codec.update(image=8, multipliers=(1,), channels=8, blocks=1)
    base.data.update(image=8, patch=1)
    c = config.resolve(base, families()).model
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    vocabulary = Vocabulary(VOCAB, codes=VOCAB - 512, code_count=512)
    built = chameleon.build(c, vocabulary, rules)
    return built.parts, jax.jit(built.init)(jax.random.key(0))


def rows(batch: int):
    """Prompts as a Batch."""
    from mmjax.batch import Batch

    flat = np.zeros((batch, PROMPT), np.int32)
    place = np.tile(np.arange(PROMPT, dtype=np.int32), (batch, 1))
    ones = np.ones((batch, PROMPT), np.float32)
    pixels = np.zeros((batch, 1, 0, 0, 3), np.uint8)
    return Batch(prompt_ids(batch), flat, flat + 1, place, flat, ones, pixels)


def engine(s: Size, batch: int, draw: bool):
    """The interleaved engine."""
    import jax
    import jax.numpy as jnp

    from mmjax.sample.engine import Options, Plan, advance, begin
    from mmjax.sample_config import Choice

    parts, params = model(s)
    cold = Choice(0.0, 0, 1.0, 0.0, 1.0)
    count = CODES + 1 if draw else s.new
    options = Options(count, count, 1, cold, cold, guidance=2.0 if draw else 1.0)
    column = jnp.zeros((batch,), jnp.int32)
    never = jnp.full((batch, 1), parts.vocabulary.pad)  # so that no row ends early
    plan = Plan(
        column + count * draw, column + 4, column, column, column + count + 1, column + 999,
        column + 999, never,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), batch)
    prompt = rows(batch)

    @jax.jit
    def generate(params):
        state = begin(parts, params, prompt, plan, options)
        return advance(parts, params, state, plan, keys, jnp.int32(count), options).tokens

    return lambda: np.asarray(generate(params))


def host_loop(s: Size, batch: int):
    """One compiled step a token; the host reads every token."""
    import jax
    import jax.numpy as jnp

    from mmjax.sample.decode import logits_of, prefill

    parts, params = model(s)
    start = jax.jit(lambda params: prefill(parts, params, rows(batch), s.new))

    @partial(jax.jit, donate_argnums=1)
    def step(params, cache, token, column):
        x = parts.embed(params, token[:, None])
        at = jnp.full((batch, 1), column)
        mask = (jnp.arange(PROMPT + s.new) <= column)[None, None]
        hidden, cache = parts.run(params, x, mask, at, cache, at)
        return cache, jnp.argmax(logits_of(parts, params, hidden[:, 0]), -1).astype(jnp.int32)

    first = jax.jit(lambda params, last: jnp.argmax(logits_of(parts, params, last), -1))

    def run():
        filled = start(params)
        cache, token = filled.cache, first(params, filled.last).astype(jnp.int32)
        out = [np.asarray(token)]
        for column in range(PROMPT, PROMPT + s.new - 1):
            cache, token = step(params, cache, token, column)
            out.append(np.asarray(token))
        return np.stack(out, 1)

    return run


def torch_generate(s: Size, batch: int):
    """Hugging Face's generate, eager, greedy, with its cache."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=VOCAB, hidden_size=s.width, intermediate_size=s.mlp,
        num_hidden_layers=s.depth, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=256,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                   "num_embeddings": 8, "embed_dim": 32, "latent_channels": 32},
        vocabulary_map={"<image>": 4},
    )  # fmt: skip
    network = ChameleonForConditionalGeneration(config).eval()
    ids = torch.from_numpy(prompt_ids(batch)).long()

    @torch.no_grad()
    def run():
        return network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
            min_new_tokens=s.new, max_new_tokens=s.new,
        )  # fmt: skip

    return run


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--torch", help="a Python that has torch and transformers")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--toy", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    s = TOY if args.toy else Size()
    if args.worker:
        kind, batch = args.worker.split(":")
        made = {
            "text": partial(engine, draw=False), "picture": partial(engine, draw=True),
            "host": host_loop, "torch": torch_generate,
        }[kind](s, int(batch))  # fmt: skip
        turns.worker(made, warm=2)
        return
    for batch in (1, 8):
        peers = {
            f"engine, text, batch {batch}": ("text", sys.executable, s.new),
            f"host loop, text, batch {batch}": ("host", sys.executable, s.new),
            f"engine, pictures, batch {batch}": ("picture", sys.executable, CODES),
        }
        if args.torch:
            peers[f"torch, text, batch {batch}"] = ("torch", args.torch, s.new)
        running = {
            label: turns.launch(
                __file__, f"{kind}:{batch}", python, "launcher", ["--toy"] * args.toy
            )
            for label, (kind, python, _) in peers.items()
        }
        rates = {label: (batch * new, "tokens/s") for label, (_, _, new) in peers.items()}
        times = turns.alternate(running, args.rounds)
        turns.table(times, f"engine, text, batch {batch}", rates)


if __name__ == "__main__":
    main()
