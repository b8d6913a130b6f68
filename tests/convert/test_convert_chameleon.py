"""Chameleon's config.json: what it says of ids and shapes, and what is refused."""

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
from mmjax.convert import chameleon as convert
from mmjax.convert.decoder import decoder_rows
from mmjax.convert.rows import from_theirs, to_theirs, wanted
from mmjax.error import UserError

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def given():
    with np.load(GOLDEN / "hf_chameleon.npz") as file:
        return json.loads(str(file["config"]))


def test_ids_are_read_from_their_names(given):
    v = convert.vocabulary(given)
    assert (v.bos, v.pad, v.eos, v.boi, v.eoi) == (0, 1, 2, 50, 51)
    assert (v.sep, v.eoss, v.codes, v.code_count, v.size) == (-1, -1, 4, 20, 56)
    ids = convert.image_ids(given)
    assert sorted(ids) == list(range(20)) and list(ids.values()) != sorted(ids.values())
    assert convert.image_ids({**given, "vocabulary_map": {**given["vocabulary_map"]}}) == ids
    number = given["vocabulary_map"]["IMGIMGBGZ"]
    assert ids[16] == number  # B is 1, G is 6


def test_ids_in_reserve_are_never_words(given):
    """`<image>` stands for pictures in their prompts; the rest of the reserve for nothing yet."""
    v = convert.vocabulary(given)
    assert v.barred == (given["vocabulary_map"]["<image>"],)
    names = given["vocabulary_map"] | {"<reserved00007>": 52, "<reserved08706>": 53, "reserved": 54}
    v = convert.vocabulary(given | {"vocabulary_map": names})
    assert v.barred == tuple(sorted((names["<image>"], 52))) and v.sep == 53
    c = convert.config(given)
    back = convert.vocabulary(convert.given(c, v))
    assert back.barred == v.barred and back.sep == v.sep


def test_rows_have_room_for_three_pictures_resized_as_theirs(given):
    c = convert.config(given)
    place = convert.place(c)
    assert place["resize"] == "shortest=8 kernel=lanczos crop=8x8" and place["length"] > 3 * (
        c.tokens + 2
    )


def test_norms_that_heads_share_go_out_as_one_for_each(given):
    """As models trained here have them; theirs has a norm for each head."""
    c = convert.config(given).decoder
    shared = replace(c, head_norms=False)
    (row,) = (r for r in decoder_rows(shared, "model") if r.ours.endswith("attention/q_norm_scale"))
    x = np.random.default_rng(0).normal(size=(c.depth, 1, c.head_dim)).astype(np.float32)
    out = dict(to_theirs([row], {row.ours: x}.__getitem__))
    assert wanted(row) == (c.heads, c.head_dim) and len(out) == c.depth
    (whole,) = (r for r in decoder_rows(c, "model") if r.ours == row.ours)
    back = from_theirs([whole], out.__getitem__)["decoder"]["blocks"]["attention"]["q_norm_scale"]
    np.testing.assert_array_equal(back, np.broadcast_to(x, (c.depth, c.heads, c.head_dim)))


@pytest.mark.parametrize("name", ["chameleon", "chameleon_swin"])
def test_words_that_follow_are_torchs(name, tmp_path):
    """Token by token through the engine and the codec, pictures given as bytes."""
    source = theirs(name, tmp_path / "hub")
    held = conversion.hold(conversion.convert(source, tmp_path / "work", said=lambda _: None))
    params = unflatten_dict(held.read(*held.like), sep="/")
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        ids, mask = (file[f"in/{n}"].astype(np.int32) for n in ("input_ids", "attention_mask"))
        wanted, pixels = file["more/greedy"], file["more/pixels"].astype(np.uint8)
    seen = (ids == 55).astype(np.int32)
    assert seen.sum(1).tolist() == [held.model.parts.config.tokens] * 2
    place = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape) * mask
    weight, shown = mask.astype(np.float32), pixels.transpose(0, 2, 3, 1)[:, None]
    batch = Batch(ids, IMAGE * seen, mask, place, seen, weight, shown)
    # Of the ids in reserve none is a word, and none is there.
    barred = replace(held.vocabulary, barred=(52, 53, 54, 55))
    parts = held.model.parts._replace(vocabulary=barred)
    state = continued(parts, params, batch, wanted.shape[1])
    assert np.asarray(state.tokens).tolist() == wanted.tolist()
    other = continued(parts, params, batch._replace(pixels=shown[::-1]), wanted.shape[1])
    assert (np.asarray(other.tokens) != wanted).any()  # it looks


def test_there_and_back(given):
    c, v = convert.config(given), convert.vocabulary(given)
    back = convert.given(c, v)
    assert convert.config(back) == c and convert.vocabulary(back) == v
    assert list(convert.image_ids(back).values()) == list(range(4, 24))


def test_the_released_sizes_follow_from_defaults():
    """The 7B's weights, from a config.json that leaves out what is the default."""
    names = {f"IMGIMG{str(n).translate(str.maketrans('0123456789', 'ABCDEFGHIJ'))}Z": 4 + n
             for n in range(8192)}  # fmt: skip
    given = {"model_type": "chameleon", "vocabulary_map": names}
    c, v = convert.config(given), convert.vocabulary(given)
    assert (c.tokens, c.codes, v.size) == (1024, 8192, 65536)
    rows = convert.rows(c, v, given)
    shapes = {name: wanted(row) for row in rows for name in row.names}
    assert shapes["model.layers.31.self_attn.q_norm.weight"] == (32, 128)
    assert shapes["model.vqmodel.encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    language = sum(int(np.prod(s)) for n, s in shapes.items() if "vqmodel" not in n)
    d, f, norms = 4096, 11008, 2 * 2 * 32 * 128
    assert language == 2 * 65536 * d + 32 * (4 * d * d + 3 * d * f + 2 * d + norms) + d


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ({"vq_config": {"base_channels": 24}}, "no multiples of 32"),
        ({"vq_config": {"double_latent": True}}, "double_latent=True"),
    ],
)
def test_what_is_not_known_is_refused(given, changes, words):
    with pytest.raises(UserError, match=words):
        convert.config({**given, **changes})


def test_image_ids_must_be_codes_in_a_row(given):
    names = dict(given["vocabulary_map"])
    missing = {k: v for k, v in names.items() if k != "IMGIMGBGZ"}
    with pytest.raises(UserError, match=r"names 19 image ids .* has 20 codes"):
        convert.vocabulary({**given, "vocabulary_map": missing})
    apart = {**names, "IMGIMGBGZ": 54}
    with pytest.raises(UserError, match="ids in a row"):
        convert.vocabulary({**given, "vocabulary_map": apart})
