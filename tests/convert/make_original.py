"""Writes a small random Chameleon as Facebook lays it out, with what torch makes of it beside.

    python tests/convert/make_original.py

The decoder is Hugging Face's, its weights brought back to the original's order; the codec's decoder
is put together of Hugging Face's own blocks. Numbers are bfloat16, as in the release.
"""

import json
from pathlib import Path

import make_golden
import numpy as np
import torch
from torch.nn.functional import interpolate, silu
from transformers.models.chameleon import modeling_chameleon as theirs

YAML = """model:
  params:
    embed_dim: 4
    n_embed: 20
    ckpt_path: elsewhere.ckpt
    lossconfig: {{target: none}}
    ddconfig: {{double_z: false, z_channels: 8, resolution: 8, in_channels: 3, out_ch: 3, ch: 32,
      ch_mult: [1, 1], num_res_blocks: 1, attn_resolutions: {attend}, dropout: 0.0}}
"""
LAYER = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "self_attn.q_norm": "attention.q_normalization",
    "self_attn.k_norm": "attention.k_normalization",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
COLUMNS = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight")  # split along axis 1


class Up(torch.nn.Module):
    """One level of the codec's decoder."""

    def __init__(self, c, first: bool):
        super().__init__()
        block, attn = theirs.ChameleonVQVAEEncoderResnetBlock, theirs.ChameleonVQVAEEncoderAttnBlock
        self.block = torch.nn.ModuleList([block(c, 32, 32) for _ in range(2)])
        self.attn = torch.nn.ModuleList([attn(32) for _ in range(2)] if first else [])
        if first:
            self.upsample = torch.nn.Module()
            self.upsample.conv = torch.nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x):
        for n, block in enumerate(self.block):
            x = block(x)
            x = self.attn[n](x) if len(self.attn) else x
        if hasattr(self, "upsample"):
            x = self.upsample.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Decoder(torch.nn.Module):
    """The codec's decoder: two levels of 32 channels, 4 x 4 places to 8 x 8 pixels."""

    def __init__(self, c):
        super().__init__()
        block, attn = theirs.ChameleonVQVAEEncoderResnetBlock, theirs.ChameleonVQVAEEncoderAttnBlock
        self.conv_in = torch.nn.Conv2d(8, 32, 3, padding=1)
        self.mid = torch.nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = block(c, 32, 32), attn(32), None
        self.mid.block_2 = block(c, 32, 32)
        self.up = torch.nn.ModuleList([Up(c, first=False), Up(c, first=True)])
        self.norm_out = torch.nn.GroupNorm(32, 32, eps=1e-6)
        self.conv_out = torch.nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, z):
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for up in reversed(self.up):
            x = up(x)
        return self.conv_out(silu(self.norm_out(x)))


def pairs(x, heads: int):
    """Rows of queries or keys with RoPE's pairs half a head apart -> side by side."""
    return x.reshape(heads, 2, -1, x.shape[1]).transpose(1, 2).reshape(x.shape)


def split(name: str, x, shards: int, c) -> list:
    """Hugging Face's tensor as the parts that lie in the original's shards."""
    if "_norm." in name and "layers" in name:
        x = torch.stack(x.chunk(shards))[:, 0]  # one of the heads of a shard
        return [pairs(one[:, None], 1)[:, 0] for one in x]
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
        x = pairs(x, heads)
    if x.ndim == 1:
        return [x] * shards
    return list(x.chunk(shards, dim=int(name.endswith(COLUMNS))))


def original(name: str) -> str:
    """The original's name of one of Hugging Face's."""
    if name.startswith("model.layers."):
        _, _, number, rest = name.split(".", 3)
        module, end = rest.rsplit(".", 1)
        return f"layers.{number}.{LAYER[module]}.{end}"
    ends = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
    return ends[name.rsplit(".", 1)[0]] + ".weight"


def drawn(swin: bool, shards: int, seed: int):
    """(Hugging Face's model, the codec's decoder), whose weights both formats can hold."""
    model = make_golden.redrawn(make_golden.chameleon(swin), seed)
    decoder = Decoder(model.config.vq_config).eval()
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, x in decoder.named_parameters():
            fan = x[0].numel() if x.ndim > 1 else 4
            x.copy_(torch.randn(x.shape, generator=rng) * fan**-0.5 + name.endswith("norm.weight"))
        for name, x in model.named_parameters():
            if "_norm." in name and "layers" in name:
                for part in x.chunk(shards):
                    part.copy_(part[:1].expand_as(part))
        for x in (*model.parameters(), *decoder.parameters()):
            x.copy_(x.bfloat16().float())
    return model, decoder


def write(place: Path, model, decoder, shards: int) -> None:
    """The directory: models/7b, and the tokenizer beside."""
    c, state = model.config, {k: v.bfloat16() for k, v in model.state_dict().items()}
    home, tokenizer = place / "models" / "7b", place / "tokenizer"
    home.mkdir(parents=True)
    tokenizer.mkdir()
    text = {k: v for k, v in state.items() if not k.startswith("model.vqmodel.")}
    parts = {original(k): split(k, v, shards, c) for k, v in text.items()}
    for n in range(shards):
        held = {k: v[n].contiguous() for k, v in parts.items()} | {"rope.freqs": torch.ones(2)}
        file = "consolidated.pth" if shards == 1 else f"consolidated.{n:02d}.pth"
        torch.save(held, home / file)
    codec = {k.removeprefix("model.vqmodel."): v for k, v in state.items() if "vqmodel" in k}
    codec |= {f"decoder.{k}": v.bfloat16() for k, v in decoder.state_dict().items()}
    torch.save({"state_dict": codec, "epoch": 3}, tokenizer / "vqgan.ckpt")
    params = {"dim": c.hidden_size, "n_layers": c.num_hidden_layers, "n_heads": 4, "n_kv_heads": 2}
    params |= {"norm_eps": c.rms_norm_eps, "swin_norm": c.swin_norm, "qk_normalization": True}
    (home / "params.json").write_text(json.dumps({"model": params}))
    (home / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": shards}))
    (tokenizer / "vqgan.yaml").write_text(YAML.format(attend=[4]))
    names = {k if k != "<image>" else "<reserved08707>": v for k, v in c.vocabulary_map.items()}
    names |= {f"word{n}": n for n in range(c.vocab_size) if n not in names.values()}
    kept = {"type": "BPE", "vocab": names, "merges": []}
    added = [{"id": names["<reserved08707>"], "content": "<reserved08707>", "special": True}]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    whole = {"version": "1.0", "model": kept, "added_tokens": [added[0] | plain]}
    (tokenizer / "text_tokenizer.json").write_text(json.dumps(whole))


def made(model, decoder, seed: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of both, `pixels` [n, 3, h, w] being those of codes drawn at random."""
    with torch.no_grad():
        found = make_golden.writing(model, seed)
        found = {k: v for k, v in found.items() if not k.startswith("more/")}
        codes = torch.randint(0, 20, (2, 16), generator=torch.Generator().manual_seed(seed))
        vq = model.model.vqmodel
        z = vq.quantize.embedding(codes).reshape(2, 4, 4, 4).permute(0, 3, 1, 2)
        found |= {"codes": codes, "pixels": decoder(vq.post_quant_conv(z))}
    return {k: v.numpy() for k, v in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    place = make_golden.HERE / "facebook"
    model, decoder = drawn(swin=True, shards=2, seed=0)
    write(place, model, decoder, shards=2)
    np.savez_compressed(place / "made.npz", **made(model, decoder, 1))


if __name__ == "__main__":
    main()
