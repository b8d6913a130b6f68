"""IDEFICS's directories: what config.json says, what is refused, and words that follow."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from greedy import continued
from test_conversion import theirs

from mmjax import conversion
from mmjax.batch import IMAGE, Batch
from mmjax.convert import idefics as convert
from mmjax.convert.rows import wanted
from mmjax.error import UserError
from mmjax.models.aside import Kept

GOLDEN = Path(__file__).parent.parent / "golden"


def loaded(name: str) -> dict:
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        return {k: file[k] for k in file.files}


def config_of(name: str) -> dict:
    return json.loads(str(loaded(name)["config"]))


@pytest.fixture(scope="module")
def given():
    return config_of("idefics")


def test_tied_outputs_are_read_from_embeddings(given):
    """Those of ids that were added too."""
    given = given | {"tie_word_embeddings": True}
    c, v = convert.config(given), convert.vocabulary(given)
    rows = convert.rows(c, v)
    plain = {row.ours: row.theirs for row in rows}
    outputs = {plain["head/w"], plain["added/w"]}
    assert outputs == {"lm_head.weight", "lm_head.additional_fc.weight"}

    def named(there):
        return {row.ours: row.theirs for row in conversion.apart(rows, given, there)}

    found = named(set(plain.values()) - outputs)
    assert found["head/w"] == found["embed/table"] == "model.embed_tokens.weight"
    assert found["added/w"] == found["added/table"]
    assert named(set(plain.values())) == plain  # what there is counts
    found = named(set(plain.values()) - {"model.embed_tokens.weight"})
    assert found["embed/table"] == "lm_head.weight"  # and the other way round


def test_words_that_follow_are_torchs(tmp_path):
    """Token by token through the engine, pictures given as bytes, one row without any."""
    source = theirs("idefics", tmp_path / "hub")
    held = conversion.hold(conversion.convert(source, tmp_path / "work", said=lambda _: None))
    params = unflatten_dict(held.read(*held.like), sep="/")
    file = loaded("idefics")
    ids, mask = (file[f"in/{n}"].astype(np.int32) for n in ("input_ids", "attention_mask"))
    seen = ((ids == 41) & (mask > 0)).astype(np.int32)
    place = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape) * mask
    pixels = file["more/pixels"].astype(np.uint8).transpose(0, 1, 3, 4, 2)
    pads = np.where(seen > 0, held.vocabulary.pad, ids)  # as rows have them
    image = np.where(seen, np.cumsum(seen, axis=1), 0).astype(np.int32)
    batch = Batch(pads, IMAGE * seen, mask, place, image, mask.astype(np.float32), pixels)
    greedy = file["more/greedy"]
    count = greedy.shape[1]
    ids = replace(held.vocabulary, sep=39)  # not among the words there
    parts = held.model.parts._replace(vocabulary=ids)
    state = continued(parts, params, batch, count)
    assert np.asarray(state.tokens).tolist() == greedy.tolist()
    assert len({tuple(row) for row in greedy.tolist()}) == 3
    assert isinstance(state.cache, Kept)
    assert state.cache.looks[:, 0].tolist() == [[False, True], [True, False], [False, False]]


def test_ids_that_were_added_stand_last(given):
    v = convert.vocabulary(given)
    assert (v.size, v.bos, v.eos, v.pad, v.boi, v.eoi, v.sep) == (42, 1, 2, 0, 40, 40, -1)
    assert 40 in v.sentinels and 41 in v.sentinels and 39 not in v.sentinels
    assert (convert.config(given).added, convert.config(given).place) == (2, 41)
    more = given | {"additional_vocab_size": 3}  # of those that were instructed
    assert convert.config(more).place == 41 and convert.vocabulary(more).masks == (41,)
    plain = config_of("idefics_plain")
    v, c = convert.vocabulary(plain), convert.config(plain)
    assert (v.size, v.boi, c.added, c.place) == (40, -1, 0, 0)
    assert c.resampler is None and c.length == c.vision.length == 10


@pytest.mark.parametrize("name", ["idefics", "idefics_plain"])
def test_there_and_back(name):
    given = config_of(name)
    c, v = convert.config(given), convert.vocabulary(given)
    back = convert.given(c, v)
    assert convert.config(back) == c and convert.vocabulary(back) == v


def test_the_released_sizes_follow_from_defaults():
    """IDEFICS 9B's weights, from what its config.json says beside the defaults."""
    given = {
        "model_type": "idefics", "additional_vocab_size": 2, "cross_layer_interval": 4,
        "qk_layer_norms": True, "use_resampler": True, "vision_config": {"embed_dim": 1280},
        "perceiver_config": {"qk_layer_norms_perceiver": True},
    }  # fmt: skip
    c, v = convert.config(given), convert.vocabulary(given)
    assert (c.length, c.seen, v.size, c.tokens) == (64, 257, 32002, 1)
    rows = convert.rows(c, v)
    shapes = {name: wanted(row) for row in rows for name in row.names}
    assert shapes["model.gated_cross_attn_layers.7.cross_attn.k_proj.weight"] == (4096, 1280)
    assert shapes["model.perceiver_resampler.blocks.5.1.fc.weight"] == (5120, 1280)
    assert shapes["lm_head.additional_fc.weight"] == (2, 4096)
    d, f, wide = 4096, 11008, 1280
    block = 2 * d * d + 2 * d * wide + 3 * d * f + 2 * d + 2 * 128 + 2
    found = sum(int(np.prod(s)) for n, s in shapes.items() if "gated" in n)
    assert found == 8 * block
    inner = 16 * 96
    look = 4 * wide * inner + 8 * wide * wide + 6 * wide + 4 * 96
    found = sum(int(np.prod(s)) for n, s in shapes.items() if "perceiver" in n)
    assert found == 6 * look + 64 * wide + 2 * wide


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha_type": "matrix"}, "alpha_type='matrix'; have: float, vector"),
        ({"cross_layer_interval": 3}, "4 layers are no multiple of cross_layer_interval=3"),
        ({"vision_config": {"hidden_act": "tanh"}}, "hidden_act='tanh' is unknown"),
    ],
)
def test_what_is_not_known_is_refused(given, changes, words):
    with pytest.raises(UserError, match=words):
        convert.config({**given, **changes})


def test_models_of_ours_that_they_lack_are_refused(given):
    c, v = convert.config(given), convert.vocabulary(given)
    for change, words in (
        ({"place": -1}, "model.place=-1 is not what an IDEFICS of theirs has, 41"),
        ({"select": "patches"}, "model.select='patches' is not"),
        ({"cross": replace(c.cross, before="last")}, "model.cross.before='last' is not"),
        ({"cross": replace(c.cross, every=3)}, "4 layers are no multiple"),
        ({"resampler": replace(c.resampler, mlp=40)}, "mlp=40.* one of theirs has 'relu', 48"),
        ({"decoder": replace(c.decoder, kv_heads=2)}, "model.decoder.kv_heads=2 is not"),
        ({"decoder": replace(c.decoder, head=8)}, "model.decoder.head=8 is not"),
        ({"vision": replace(c.vision, pool="mean")}, "model.vision.pool='mean' is not"),
    ):
        with pytest.raises(UserError, match=words):
            convert.given(replace(c, **change), v)


def test_pictures_and_who_looks_at_them_must_be_told(given):
    with pytest.raises(UserError, match=r"lacks image_attention_mask, pixel_values"):
        convert.outputs(None, None, {"input_ids": np.zeros((1, 1))}, given)
