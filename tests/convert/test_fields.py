"""What a config.json may hold: every field of every kind, with values of every other kind."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmjax.convert import fields, hub, incoming
from mmjax.error import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ["clip", "siglip", "chameleon", "llama", "llava", "idefics"]
STRANGE = [
    None, True, False, 0, -1, 10**9, 10**400, 3.0, 0.5, float("nan"), float("inf"), "", "1e-5",
    "four", [], [[]], [1], [-1, "x"], {}, {"a": None}, {"type": [1]}, [{}] * 3,
]  # fmt: skip
# Of what is read no field may be one of these, but what its rule says.
NEVER = {"1e-5": "a string", repr([[]]): "-", repr({"a": None}): "a group of fields", "nan": "-"}


def given(name: str) -> dict:
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        return json.loads(str(file["config"]))


def understood(config: dict) -> incoming.Understood:
    return incoming.understood(hub.Hub(Path("none"), config, {}, {}, {}))[2]


def put(config: dict, place: str, name: str, x) -> dict:
    """A config.json with one field changed, in a group by its dotted name."""
    found = json.loads(json.dumps(config))
    group = found
    for part in filter(None, place.split(".")):
        group = group.setdefault(part, {}) or group.update({part: {}}) or group[part]
    group[name] = x
    return found


def read(kind: str) -> list[tuple[str, str, fields.Rule]]:
    """(Group, field, rule) of all that is looked at."""
    groups = fields.FIELDS[kind].items()
    return [(place, name, rule) for place, rules in groups for name, rule in rules.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_a_field_is_a_traceback(kind):
    """Every field is read, or refused in one short line that names it."""
    config, refused = given(kind), 0
    understood(config)
    fits = [(p, n, r[1]) for p, n, r in read(kind) if (p, n) != ("", "model_type")]
    for place, name, rule in fits:
        for x in STRANGE:
            try:
                understood(put(config, place, name, x))
            except UserError as error:
                said = str(error)
                refused += 1
                assert "\n" not in said and len(said) < 400, said
            else:
                wants = NEVER.get(x if isinstance(x, str) else repr(x))
                assert wants is None or wants in rule, (place, name, x)
    assert refused > 8 * len(fits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x", [None, True, 3, "x", [], [1], {"a": 1}])
def test_no_group_that_is_another_thing_is_a_traceback(kind, x):
    """Fields at random places: of what is in the file itself, and unknown ones."""
    config = given(kind)
    for name in [*config, "unknown"]:
        if name == "model_type":
            continue
        try:
            understood(config | {name: x})
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize(
    ("kind", "place", "name", "x", "words"),
    [
        ("llama", "", "num_hidden_layers", 3.0, "num_hidden_layers=3.0 must be a whole number"),
        ("llama", "", "num_hidden_layers", 10**6, "num_hidden_layers=1000000 must be a whole"),
        ("llama", "", "num_hidden_layers", True, "num_hidden_layers=True must be a whole number"),
        ("llama", "", "hidden_size", None, "hidden_size=None must be a whole number from 1"),
        ("llama", "", "hidden_size", -16, "hidden_size=-16 must be a whole number from 1"),
        ("llama", "", "vocab_size", 0, "vocab_size=0 must be a whole number from 1"),
        ("llama", "", "rms_norm_eps", -1e-5, "rms_norm_eps=-1e-05 must be a number from 0"),
        ("llama", "", "rms_norm_eps", "1e-5", "rms_norm_eps='1e-5' must be a number from 0"),
        ("llama", "", "rope_theta", 0, "rope_theta=0 must be a number above 0"),
        ("llama", "", "rope_theta", -1.0, "rope_theta=-1.0 must be a number above 0"),
        ("llama", "rope_scaling", "factor", "x", "rope_scaling.factor='x' must be a number above"),
        ("llama", "", "num_attention_heads", 3, "num_attention_heads=3 is no multiple of num_key"),
        ("clip", "text_config", "hidden_size", 13, "hidden_size=13 is no multiple of num_attentio"),
        ("llama", "", "num_key_value_heads", 3, "num_attention_heads=4 is no multiple of num_key_"),
        ("llama", "", "eos_token_id", 48, "the id 48 of eos_token_id has no row in a table of 48"),
        ("llama", "", "eos_token_id", [2, 99], "the id 99 of eos_token_id has no row"),
        ("llama", "", "bos_token_id", 10**6, "the id 1000000 of bos_token_id has no row"),
        ("llama", "", "pad_token_id", 48, "the id 48 of pad_token_id has no row"),
        ("llama", "", "eos_token_id", "2", "eos_token_id='2' must be a token's id"),
        ("llama", "", "attention_bias", 1, "attention_bias=1 must be true or false"),
        ("clip", "vision_config", "layer_norm_eps", "1e-5", "vision_config.layer_norm_eps='1e-5'"),
        ("clip", "vision_config", "layer_norm_eps", -1, "vision_config.layer_norm_eps=-1 must be"),
        ("clip", "vision_config", "patch_size", 64, "vision.patch=64 must divide vision.image=20"),
        ("clip", "vision_config", "patch_size", 0, "vision_config.patch_size=0 must be a whole"),
        ("clip", "text_config", "eos_token_id", 40, "the id 40 of .* has no row in a table of 40"),
        ("clip", "", "projection_dim", 0, "projection_dim=0 must be a whole number from 1"),
        ("llava", "vision_config", "hidden_size", 17, "hidden_size=17 is no multiple of num_atten"),
        ("llava", "text_config", "vocab_size", "x", "text_config.vocab_size='x' must be a whole"),
        (
            "llava",
            "",
            "vision_feature_layer",
            [],
            "vision_feature_layer=.* must be the number of a",
        ),
        ("idefics", "", "cross_layer_interval", 0, "cross_layer_interval=0 must be a whole number"),
        ("idefics", "perceiver_config", "resampler_depth", 0, "perceiver_config.resampler_depth=0"),
        ("chameleon", "vq_config", "num_embeddings", 2**31 - 1, "names 20 image ids .* 2147483647"),
        ("chameleon", "vq_config", "channel_multiplier", [1, "x"], "channel_multiplier=.* must be"),
        ("chameleon", "", "vocabulary_map", {"<s>": "0"}, "vocabulary_map=.* must be a group of"),
    ],
)
def test_a_field_is_named_with_what_it_must_be(kind, place, name, x, words):
    with pytest.raises(UserError, match=words):
        understood(put(given(kind), place, name, x))


def test_what_may_be_null_is_as_if_it_were_left_out():
    config = given("llama")
    for name in ("head_dim", "rope_scaling", "attention_bias"):
        rest = {k: x for k, x in config.items() if k != name}
        assert understood(rest | {name: None}).config == understood(rest).config
    assert understood(config | {"eos_token_id": None}).vocabulary.eos == -1
    assert understood(config | {"pad_token_id": -1}).vocabulary.pad == 2  # the first Llamas' none


def test_every_default_is_what_it_may_be():
    """A config.json that says nothing but its kind holds in all fields."""
    for kind in KINDS:
        if kind != "chameleon":  # whose image ids have no default
            assert re.match("Config", type(understood({"model_type": kind}).config).__name__)
