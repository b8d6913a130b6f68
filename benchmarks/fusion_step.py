"""One training step of CLIP and one of LLaVA, of mmjax and of Hugging Face's torch.

    python benchmarks/fusion_step.py --torch=PYTHON   (PYTHON has torch and transformers)
    python benchmarks/fusion_step.py --toy --rounds=2 (mmjax alone, to see that it runs)

Without --torch only mmjax's steps are timed.

CLIP: 128 pairs, pictures of 32 pixels in patches of 8, texts of 32, both towers 128 wide, 4 layers,
4 heads. LLaVA: batch 8, a picture of 64 pixels in 64 patches of 8 and 64 words; the tower 128 wide,
4 layers, frozen; the language model 256 wide, 6 layers, 4 heads, SwiGLU 768, 8,192 ids, trained.
f32, AdamW, clipping at 1; torch eager, scaled-dot-product attention, fused AdamW. Peers take turns
as in `turns.py`.
"""

import argparse
import sys
from functools import partial
from typing import NamedTuple

import numpy as np
import turns

ROW, VOCAB = 8, 8192  # pairs a row of CLIP's; ids


class Size(NamedTuple):
    """Of CLIP: pairs, words a text, a tower's width and depth. Of LLaVA: rows, words, its decoder.

    A tower has four heads, and so has the decoder.
    """

    pairs: int = 128
    words: int = 30
    wide: int = 128
    deep: int = 4
    batch: int = 8
    length: int = 64
    width: int = 256
    depth: int = 6
    mlp: int = 768

    @property
    def tower(self) -> dict:
        """A tower in Hugging Face's words."""
        return {
            "hidden_size": self.wide, "num_hidden_layers": self.deep, "num_attention_heads": 4,
            "intermediate_size": 4 * self.wide,
        }  # fmt: skip


TOY = Size(pairs=16, words=6, wide=32, deep=1, batch=2, length=8, width=32, depth=1, mlp=48)
PLACE = 4  # id that stands where a picture does, in torch


def words(rows: int, count: int) -> np.ndarray:
    """[rows, count] int32 random ids."""
    return np.random.default_rng(0).integers(20, VOCAB - 20, (rows, count)).astype(np.int32)


def pictures(count: int, side: int) -> np.ndarray:
    """[count, side, side, 3] uint8."""
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def ours(experiment: str, change, batch):
    """A step of an experiment's family, on one device. change: fills in the sizes."""
    import jax

    from mmjax import config, optim
    from mmjax.batch import Vocabulary
    from mmjax.config import OptimConfig
    from mmjax.mesh import Rules, make_mesh
    from mmjax.models import MODELS
    from mmjax.run import families
    from mmjax.step import init_state, train_step

    base = config.load(str(turns.ROOT / "experiments" / f"{experiment}.py"))
    change(base)
    e = config.resolve(base, families())
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    model = MODELS[e.family].build(e.model, Vocabulary(VOCAB), rules)
    o = OptimConfig("adamw", 1e-3, 10, "cosine", 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.0)
    tx = optim.optimizer(o, 1000, model.rates)
    held = jax.device_put(batch)
    state = jax.jit(partial(init_state, model, tx, 0.0))(jax.random.key(0))
    step = jax.jit(
        partial(train_step, model, tx, optim.schedule(o, 1000), 0.0, 1, 0), donate_argnums=0
    )

    def run():
        nonlocal state
        state, metrics = step(state, held)
        return float(metrics["loss"])

    return run


def packed(s: Size, documents: int, parts: list, side: int):
    """A Batch of rows of equal documents. parts: of each position, a word 0 or a picture 1."""
    from mmjax.batch import Batch, Vocabulary

    v, one = Vocabulary(VOCAB), np.array(parts)
    rows = (s.pairs if documents > 1 else s.batch) // documents
    shape = rows, documents * len(one)
    shown = np.broadcast_to(np.tile(one, documents), shape).astype(np.int32)
    tokens = np.where(shown, v.pad, words(*shape))
    tokens[:, :: len(one)] = v.bos
    tokens[:, len(one) - 1 :: len(one)] = v.eos
    number = np.broadcast_to(np.repeat(np.arange(documents), len(one)) + 1, shape)
    place = np.broadcast_to(np.tile(np.arange(len(one)), documents), shape)
    return Batch(
        tokens.astype(np.int32), shown, number.astype(np.int32), place.astype(np.int32),
        shown * number.astype(np.int32), (1 - shown).astype(np.float32),
        pictures(rows * documents, side).reshape(rows, documents, side, side, 3),
    )  # fmt: skip


def clip_ours(s: Size):
    """CLIP: rows of 8 pairs."""

    def change(c):
        for tower in (c.model.vision, c.model.text):
            tower.encoder.update(width=s.wide, depth=s.deep, heads=4, mlp=4 * s.wide)
            tower.encoder.unroll = s.deep
        c.model.vision.update(image=32, patch=8)
        c.model.text.length = s.words + 2
        c.model.embed = s.wide

    parts = [0] * (s.words + 1) + [1, 0]
    return ours("clip_openmoji", change, packed(s, ROW, parts, 32))


def llava_ours(s: Size):
    """LLaVA: a picture, then words."""

    def change(c):
        d, v = c.model.decoder, c.model.vision
        d.update(width=s.width, depth=s.depth, heads=4, kv_heads=4, mlp=s.mlp, unroll=s.depth)
        d.qk_norm = False
        v.image, v.patch = 64, 8
        v.encoder.update(width=s.wide, depth=s.deep, heads=4, mlp=4 * s.wide, unroll=s.deep)
        c.data.image, c.data.patch = 64, 8
        c.data.length = 1 + 64 + s.length

    parts = [0] + [1] * 64 + [0] * s.length
    return ours("small_llava", change, packed(s, 1, parts, 64))


def theirs(model, given, parameters):
    """A step of a torch model."""
    import torch

    optimizer = torch.optim.AdamW(parameters, 1e-3, (0.9, 0.95), 1e-8, 0.1, fused=True)

    def run():
        loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def signal(count: int, side: int):
    """Pictures as torch reads them."""
    import torch

    return torch.from_numpy(pictures(count, side)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def clip_torch(s: Size):
    """Hugging Face's CLIPModel."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    sizes = {"vocab_size": VOCAB, "max_position_embeddings": s.words + 2, "eos_token_id": VOCAB - 1}
    config = CLIPConfig(
        text_config=s.tower | sizes, vision_config=s.tower | {"image_size": 32, "patch_size": 8},
        projection_dim=s.wide,
    )  # fmt: skip
    model = CLIPModel(config)
    ids = torch.from_numpy(words(s.pairs, s.words + 2)).long()
    ids[:, -1] = VOCAB - 1
    given = {"input_ids": ids, "pixel_values": signal(s.pairs, 32), "return_loss": True}
    return theirs(model, given, list(model.parameters()))


def llava_torch(s: Size):
    """Hugging Face's LLaVA with a CLIP tower."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = LlamaConfig(
        vocab_size=VOCAB, hidden_size=s.width, intermediate_size=s.mlp, num_hidden_layers=s.depth,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(**s.tower, image_size=64, patch_size=8)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=PLACE, image_seq_length=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    ids = torch.from_numpy(words(s.batch, 1 + 64 + s.length)).long()
    ids[:, 1:65] = PLACE
    labels = torch.where(ids == PLACE, -100, ids)
    frozen = model.model.vision_tower
    frozen.requires_grad_(requires_grad=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    given = {"input_ids": ids, "pixel_values": signal(s.batch, 64), "labels": labels}
    return theirs(model, given, parameters)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--torch", help="a Python that has torch and transformers")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--toy", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    makers = {
        "clip, mmjax": clip_ours, "clip, torch": clip_torch,
        "llava, mmjax": llava_ours, "llava, torch": llava_torch,
    }  # fmt: skip
    if args.worker:
        turns.worker(makers[args.worker](TOY if args.toy else Size()))
        return
    for family in ("clip", "llava"):
        peers = {f"{family}, mmjax": sys.executable}
        if args.torch:
            peers = {f"{family}, torch": args.torch} | peers
        more = ["--toy"] * args.toy
        running = {
            label: turns.launch(__file__, label, python, "launcher", more)
            for label, python in peers.items()
        }
        turns.table(turns.alternate(running, args.rounds), next(iter(peers)))


if __name__ == "__main__":
    main()
