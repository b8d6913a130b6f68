"""Writes small random models of Hugging Face's, with inputs and outputs, as golden files.

    python tests/convert/make_golden.py [NAME ...]

Weights are drawn anew at a scale at which every part matters: with the usual 0.02 most of a tower
could be left out unnoticed.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent.parent / "golden"
VISION = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
    "image_size": 20, "patch_size": 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "vocab_size": 40, "max_position_embeddings": 9,
}  # fmt: skip


def clip():
    """A CLIP; texts end in 39, after which is padding."""
    text = TEXT | {"eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 0}
    c = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=10)
    return transformers.CLIPModel(c)


def clip_first():
    """As the first were saved: EOS is 2, which means a text's highest id, whichever that is."""
    model = clip()
    text = model.config.text_config
    text.eos_token_id = model.text_model.eos_token_id = 2
    return model


def siglip():
    """A SigLIP, whose texts fill the row."""
    text = TEXT | {"hidden_size": 16, "num_attention_heads": 4, "projection_size": 16}
    c = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    return transformers.SiglipModel(c)


WIDE = (24, 16)  # pixels of a picture that is no square, and larger than its tower's


class WideClip(transformers.CLIPModel):
    """One whose positions are brought to other grids unasked."""

    def forward(self, *args, **named):
        return super().forward(*args, interpolate_pos_encoding=True, **named)


class WideSiglip(transformers.SiglipModel):
    """The same of SigLIP."""

    def forward(self, *args, **named):
        return super().forward(*args, interpolate_pos_encoding=True, **named)


def clip_wide():
    """Pictures of six patches by four, texts whose padding is masked."""
    return WideClip(clip().config)


def siglip_wide():
    """The same of SigLIP."""
    return WideSiglip(siglip().config)


def vit():
    """A ViT as it stands alone: a class token, biases of patches, no norm before the blocks."""
    return transformers.ViTModel(transformers.ViTConfig(**VISION, layer_norm_eps=1e-6))


def seeing(model, seed: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of a ViT."""
    pixels = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
    out = model(pixel_values=pixels, output_hidden_states=True)
    found = {f"hidden_{n}": x for n, x in enumerate(out.hidden_states)}
    return found | {"pixel_values": pixels, "pooled": out.last_hidden_state[:, 0]}


def chameleon(swin: bool = False, side: int = 8, **codec):
    """A Chameleon whose image ids stand for codes in no order; swin: the 34B's norms."""
    order = np.random.default_rng(0).permutation(20)
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<racm3:break>": 50, "<eoss>": 51, "<image>": 55}
    for place, code in enumerate(order):
        letters = "".join(chr(ord("A") + int(digit)) for digit in str(code))
        names[f"IMGIMG{letters}Z"] = 4 + place
    c = transformers.ChameleonConfig(
        vocab_size=56, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, swin_norm=swin, vocabulary_map=names,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
        vq_config={
            "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
            "attn_resolutions": [side // 2], "resolution": side, "latent_channels": 8,
            "embed_dim": 4, "num_embeddings": 20, **codec,
        },
    )  # fmt: skip
    return transformers.ChameleonForConditionalGeneration(c)


def chameleon_swin():
    """Norms behind the branches; pictures of five codes by five, whose places do not attend."""
    return chameleon(swin=True, side=10, attn_type="none")


def llama(**changes):
    """A Llama with grouped queries."""
    values = dict(
        vocab_size=48, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=5000.0,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**values | changes))


def llama_tied():
    """As Llama 3.2's: frequencies scaled, outputs tied to embeddings."""
    scaling = {
        "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 3.0, "original_max_position_embeddings": 20,
    }  # fmt: skip
    return llama(tie_word_embeddings=True, rope_parameters=scaling, hidden_size=32)


def llama_biased():
    """Biases everywhere, heads wider than the width over their number, another gate."""
    return llama(head_dim=6, attention_bias=True, mlp_bias=True, hidden_act="gelu")


def llava(tower: str = "clip", head: bool = True, side: int = 8, **changes):
    """A LLaVA: pictures of 8 pixels in four patches."""
    sizes = VISION | {"image_size": side} | ({} if head else {"vision_use_head": False})
    kind = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}
    values = dict(
        vision_config=kind[tower](**sizes), text_config=llama().config, image_token_index=47,
        image_seq_length=(side // 4) ** 2, tie_word_embeddings=False,
    )  # fmt: skip
    c = transformers.LlavaConfig(**values | changes)
    return transformers.LlavaForConditionalGeneration(c)


def llava_siglip():
    """Features of two layers of a SigLIP, and no class token."""
    return llava("siglip", vision_feature_layer=[1, -1], vision_feature_select_strategy="full")


def llava_bare():
    """A SigLIP without its head, a projector without biases; three patches by three, an edge that
    is not seen, and the first patch left out, for there is no class token.
    """
    return llava(
        "siglip", vision_feature_layer=-1, vision_feature_select_strategy="default",
        multimodal_projector_bias=False, projector_hidden_act="silu", head=False, side=14,
        image_seq_length=8,
    )  # fmt: skip


class Idefics(transformers.IdeficsForVisionText2Text):
    """Theirs knows the size of its vocabulary without the ids that were added, and takes no loss
    over both.
    """

    @property
    def loss_function(self):
        """Their loss over all ids."""
        return lambda logits, labels, **_: torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )


def idefics(side: int = 8, **changes):
    """An IDEFICS: pictures of 8 pixels; a block before every second of four layers; all options."""
    sizes = {k: v for k, v in VISION.items() if k != "hidden_size"}
    values = dict(
        vocab_size=40, additional_vocab_size=2, hidden_size=16, intermediate_size=20,
        num_hidden_layers=4, num_attention_heads=4, rms_norm_eps=1e-5, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        cross_layer_interval=2, qk_layer_norms=True, alpha_type="vector", use_resampler=True,
        freeze_text_layers=False, freeze_vision_layers=False, freeze_lm_head=False,
        vision_config=sizes | {"embed_dim": 12, "image_size": side, "hidden_act": "gelu"},
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": 3, "resampler_depth": 2,
            "resampler_n_heads": 2, "resampler_head_dim": 8, "qk_layer_norms_perceiver": True,
        },
    )  # fmt: skip
    return Idefics(transformers.IdeficsConfig(**values | changes))


def idefics_plain():
    """One without a resampler, a block before each layer, a number as gate, no ids added; three
    patches by three.
    """
    return idefics(
        side=12, num_hidden_layers=2, cross_layer_interval=1, qk_layer_norms=False,
        alpha_type="float", use_resampler=False, additional_vocab_size=0, hidden_act="gelu_new",
    )  # fmt: skip


def looking(model, seed: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of an IDEFICS: two pictures, one behind words, none; words that follow.

    Positions look at the last picture before them, but for two: one looks at both, one ahead.
    """
    c, rng = model.config, torch.Generator().manual_seed(seed)
    place = c.vocab_size + c.additional_vocab_size - 1 if c.additional_vocab_size else 0
    ids = torch.randint(3, 39, (3, 14), generator=rng)
    ids[:, 0], ids[0, 1], ids[0, 6], ids[1, 5] = 1, place, place, place
    held = torch.ones_like(ids)
    ids[1, 11:], held[1, 11:], ids[2, 8:], held[2, 8:] = 0, 0, 0, 0
    count = ((ids == place) & (held > 0)).cumsum(1)
    looks = (count[:, :, None] == torch.arange(1, 3)).long()
    side = c.vision_config.image_size
    pixels = torch.randint(0, 256, (3, 2, 3, side, side), generator=rng)
    pixels[1, 1:], pixels[2] = 0, 0  # padding
    signal = (pixels / 255 - MEAN[:, None, None]) / STD[:, None, None]
    labels = torch.where((ids == place) | (held == 0), -100, ids)
    given = {
        "input_ids": ids, "attention_mask": held, "pixel_values": signal, "labels": labels,
        "image_attention_mask": looks.clone(),
    }  # fmt: skip
    given["image_attention_mask"][0, 9] = 1
    given["image_attention_mask"][0, 2] = torch.tensor([0, 1])
    seen = []
    tower = model.model.vision_model
    hooks = [tower.pre_layrnorm, *tower.encoder.layers]
    hooks = [m.register_forward_hook(lambda m, x, y: seen.append(y)) for m in hooks]
    out = model(**given, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    made = {f"hidden_{n}": x for n, x in enumerate(out.hidden_states)}
    made |= {f"vision_hidden_{n}": x for n, x in enumerate(seen)}
    made |= {"loss": out.loss, "logits": out.logits, "image_features": out.image_hidden_states}
    more = []
    for row in range(3):
        one, at = ids[row : row + 1, : int(held[row].sum())], looks[row : row + 1]
        at = at[:, : one.shape[1]]
        for _ in range(6):
            some = {"pixel_values": signal[row : row + 1], "image_attention_mask": at}
            logits = model(input_ids=one, **some).logits[:, -1]
            one = torch.cat([one, logits[:, 3:39].argmax(-1, keepdim=True) + 3], 1)
            at = torch.cat([at, at[:, -1:]], 1)
        more.append(one[0, -6:])
    return given | made | {"more/greedy": torch.stack(more), "more/pixels": pixels}


def talking(model, seed: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of a LLaVA: two pictures, one, none; padding behind; words that follow.

    Pixels are those of bytes, so that they can be given in either form. `greedy` goes on from the
    rows as far as they are no padding, token by token.
    """
    rng = torch.Generator().manual_seed(seed)
    reads = hasattr(model.config, "vision_config")
    n = model.config.image_seq_length if reads else 4
    ids = torch.randint(3, 47, (3, 8 + 2 * n), generator=rng)
    ids[:, 0], ids[0, 2 : 2 + n], ids[0, 5 + n : 5 + 2 * n], ids[1, 1 : 1 + n] = 1, 47, 47, 47
    held = torch.ones_like(ids)
    ids[1, 7 + n :], held[1, 7 + n :], ids[2, 7:], held[2, 7:] = 0, 0, 0, 0
    labels = torch.where((ids == 47) | (held == 0), -100, ids)
    given = {"input_ids": ids, "attention_mask": held, "labels": labels}
    side = model.config.vision_config.image_size if reads else 8
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=rng)
    if reads:
        clip = model.config.vision_config.model_type.startswith("clip")
        mean, std = (MEAN, STD) if clip else (torch.full((3,), 0.5),) * 2
        signal = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        given["pixel_values"] = signal
    out = model(**given, output_hidden_states=True)
    made = {f"hidden_{n}": x for n, x in enumerate(out.hidden_states)}
    made |= {"loss": out.loss, "logits": out.logits}
    if reads:
        tower = model.model.vision_tower(signal, output_hidden_states=True)
        made |= {f"vision_hidden_{n}": x for n, x in enumerate(tower.hidden_states)}
        made["image_features"] = torch.stack(list(out.image_hidden_states))
    more, slots = [], [2, 1, 0]
    for row, count in enumerate(slots):
        one = ids[row : row + 1, : int(held[row].sum())]
        seen = {}
        if reads and count:
            first = sum(slots[:row])
            seen = {"pixel_values": given["pixel_values"][first : first + count]}
        for _ in range(6):
            logits = model(input_ids=one, **seen).logits[:, -1]
            one = torch.cat([one, logits[:, :47].argmax(-1, keepdim=True)], 1)  # words alone
        more.append(one[0, -6:])
    return given | made | {"more/greedy": torch.stack(more), "more/pixels": pixels}


def writing(model, seed: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of a Chameleon: a picture in each row, words around it, padding.

    `greedy` goes on from the rows as far as they are no padding, token by token.
    """
    rng = torch.Generator().manual_seed(seed)
    side = model.config.vq_config.resolution
    n = (side // 2) ** 2
    ids = torch.randint(24, 50, (2, n + 8), generator=rng)
    ids[:, 0], ids[0, 3 : 3 + n], ids[1, 1 : 1 + n] = 0, 55, 55
    held = torch.ones_like(ids)
    ids[1, -3:], held[1, -3:] = 1, 0
    bytes_of = torch.randint(0, 256, (2, 3, side, side), generator=rng)
    pixels = bytes_of / 127.5 - 1
    labels = torch.where((ids == 55) | (held == 0), -100, ids)
    given = {"input_ids": ids, "attention_mask": held, "pixel_values": pixels, "labels": labels}
    out = model(**given, output_hidden_states=True)
    known = model.model.vocabulary_mapping.bpe2img
    codes = [[known[int(x)] for x in row] for row in model.model.get_image_tokens(pixels)]
    made = {f"hidden_{n}": x for n, x in enumerate(out.hidden_states)}
    made |= {"loss": out.loss, "logits": out.logits, "vq_indices": torch.tensor(codes)}
    made |= {"logits_raw": model.lm_head(out.hidden_states[-1])}
    more = []
    for row in range(2):
        one = ids[row : row + 1, : int(held[row].sum())]
        for _ in range(6):
            logits = model(input_ids=one, pixel_values=pixels[row : row + 1]).logits[:, -1]
            one = torch.cat([one, logits[:, 24:50].argmax(-1, keepdim=True) + 24], 1)  # words
        more.append(one[0, -6:])
    return given | made | {"more/greedy": torch.stack(more), "more/pixels": bytes_of}


def contrastive(model, seed: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of a model with two towers."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 37, (3, 9), generator=rng)
    for row, end in zip(ids, (8, 5, 3), strict=True):
        row[end], row[end + 1 :] = 37 if model.config.text_config.eos_token_id == 2 else 39, 0
    wide = isinstance(model, WideClip | WideSiglip)
    pixels = torch.randn(3, 3, *(WIDE if wide else (20, 20)), generator=rng)
    given = {"input_ids": ids, "pixel_values": pixels}
    given |= {"attention_mask": (ids > 0).long()} if wide else {}
    out = model(**given, output_hidden_states=True, return_loss=True)
    found = {
        "logits_per_image": out.logits_per_image, "image_embeds": out.image_embeds,
        "text_embeds": out.text_embeds, "loss": out.loss,
    }  # fmt: skip
    for name, tower in (("vision", out.vision_model_output), ("text", out.text_model_output)):
        found |= {f"{name}_hidden_{i}": x for i, x in enumerate(tower.hidden_states)}
    return given | found


def positions() -> None:
    """Learned positions of a 4 x 4 grid brought to other grids, as torch's bicubic does."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(16, 3)).astype(np.float32)
    grid = torch.tensor(table.reshape(1, 4, 4, 3)).permute(0, 3, 1, 2)
    arrays = {"table": table}
    for size in ((6, 5), (2, 7), (4, 4)):
        made = torch.nn.functional.interpolate(grid, size, mode="bicubic", align_corners=False)
        arrays[f"{size[0]}x{size[1]}"] = made.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        by = tuple((n + 0.1) / 4 for n in size)  # as IDEFICS asks for it
        made = torch.nn.functional.interpolate(
            grid, scale_factor=by, mode="bicubic", align_corners=False
        )
        arrays[f"{size[0]}x{size[1]}_by_factor"] = made.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    np.savez_compressed(HERE / "torch_bicubic.npz", **arrays)


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
NAMES = ("clip", "siglip", "chameleon", "chameleon_swin", "llama", "llava", "llava_siglip")
NAMES += ("idefics", "idefics_plain", "llama_tied", "llama_biased", "clip_first", "llava_bare")
NAMES += ("clip_wide", "siglip_wide")
ALONE = ("vit",)  # has no conversion: a tower of others
RUNS = {"vit": seeing, "chameleon": writing, "llama": talking, "llava": talking, "idefics": looking}


def drawn(name: str, seed: int):
    """A model of that name in this file, see `redrawn`."""
    return redrawn(globals()[name](), seed)


def redrawn(model, seed: int):
    """A model with new weights, at a scale at which every part matters."""
    model = model.eval()
    model.config._attn_implementation = "eager"
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, x in model.named_parameters():
            fan = x[0].numel() if x.ndim > 1 else 4
            noise = torch.randn(x.shape, generator=rng) * fan**-0.5
            x.copy_(noise + ("norm" in key and key.endswith("weight")))
    return model


def main() -> None:
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)
    positions()
    for name in sys.argv[1:] or (*NAMES, *ALONE):
        model = drawn(name, 0)
        with torch.no_grad():
            made = RUNS.get(name.split("_")[0], contrastive)(model, 1)
        inputs = ("input_ids", "pixel_values", "attention_mask", "labels", "image_attention_mask")
        more = {k: v for k, v in made.items() if k.startswith("more/")}
        made = {k: v for k, v in made.items() if k not in more}
        arrays = more | {f"{'in' if k in inputs else 'out'}/{k}": v for k, v in made.items()}
        apart = {} if name != "llama_tied" else {"lm_head.weight"}  # not in their file
        state = {k: v for k, v in model.state_dict().items() if k not in apart}
        arrays |= {f"state/{k}": v for k, v in state.items()}
        arrays = {k: v.detach().numpy() for k, v in arrays.items()}
        path = HERE / f"hf_{name}.npz"
        np.savez_compressed(path, config=model.config.to_json_string(use_diff=False), **arrays)
        print(path, sum(v.size for v in arrays.values()), path.stat().st_size)


if __name__ == "__main__":
    main()
