"""Experiment files: what is refused and in which words, and the way to JSON and back."""

import copy
import dataclasses
import json
import re

import pytest
from ml_collections import ConfigDict
from tiny import ROOT, tiny, tiny_config

from mmjax import config, sample_config, values
from mmjax.error import UserError
from mmjax.models.decoder import DecoderConfig
from mmjax.run import families

FAMILIES = families()
PLAIN = values.to_dict(tiny())


def changed(**changes) -> dict:
    """The tiny experiment as a plain dict; dots are `__`, and None takes a field out."""
    values = copy.deepcopy(PLAIN)
    for name, value in changes.items():
        *groups, field = name.split("__")
        target = values
        for group in groups:
            target = target[group]
        if value is None:
            del target[field]
        else:
            target[field] = value
    return values


def refusal(**changes) -> str:
    with pytest.raises(UserError) as error:
        config.resolve(changed(**changes), FAMILIES)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_base_resolves():
    e = config.resolve(changed(), FAMILIES)
    assert e == tiny() and e.optim.warmup == 2
    assert e.data.patches == e.model.tokens == (8 // PLAIN["data"]["patch"]) ** 2


@pytest.mark.parametrize(
    ("path", "field", "near"),
    [
        ("config", "stepz", "steps"),
        ("config.optim", "peek", "peak"),
        ("config.data", "lenght", "length"),
        ("config.model", "image_wieght", "image_weight"),
        ("config.model.decoder", "heds", "heads"),
        ("config.data.sources.openmoji", "wieght", "weight"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(path, field, near):
    name = "__".join([*path.split(".")[1:], field])
    message = refusal(**{name: 1})
    assert message == f"{path} has no field {field!r} (did you mean {near!r}?)"


def test_an_unknown_field_near_nothing_gets_the_list():
    message = refusal(sample__zzzzzz=1)
    known = [f.name for f in dataclasses.fields(sample_config.SampleConfig)]
    assert message.endswith(f"have: {', '.join(known)}") and set(PLAIN["sample"]) <= set(known)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("seed", "int"),
        ("optim__peak", "float"),
        ("optim", "OptimConfig"),
        ("data__tokenizer", "str"),
    ],
)
def test_a_missing_field_is_named_with_its_type(name, kind):
    message = refusal(**{name: None})
    assert f"config.{name.replace('__', '.')} is missing" in message and kind in message


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("steps", 3.0, "int"),
        ("steps", "3", "int"),
        ("steps", True, "int"),
        ("optim__peak", True, "float"),
        ("optim__peak", "1e-3", "float"),
        ("data__shared_position", 1, "bool"),
        ("data__tokenizer", 7, "str"),
        ("model__decoder__norm", False, "str"),
    ],
)
def test_a_wrong_type_is_refused(name, value, kind):
    message = refusal(**{name: value})
    path = "config." + name.replace("__", ".")
    assert message == f"{path}={value!r} is of type {type(value).__name__}; it must be {kind}"


def test_an_int_will_do_for_a_float():
    e = config.resolve(changed(optim__peak=1, data__sources__openmoji__weight=2), FAMILIES)
    assert type(e.optim.peak) is float and e.optim.peak == 1.0
    assert type(e.data.sources["openmoji"].weight) is float


@pytest.mark.parametrize("name", ["optim", "data__sources", "data__sources__openmoji", "model"])
def test_a_value_where_a_group_belongs(name):
    assert "must be a group" in refusal(**{name: "x"})


def test_fields_that_contradict_each_other():
    assert "data.patch=3 must divide data.image=8" in refusal(data__patch=3)
    assert "model.patch=3 must divide model.image=8" in refusal(model__patch=3)
    assert "data.patch=0 must divide data.image=8" in refusal(data__patch=0)
    assert "model.patch=0 must divide model.image=8" in refusal(model__patch=0)
    assert "config.model.patch=2 differs from" in refusal(model__patch=2, data__patch=4)
    assert "config.model.image=16 differs from config.data.image=8" in refusal(model__image=16)
    assert "data.sources is empty" in refusal(data__sources={})
    assert "weight=0.0" in refusal(data__sources__openmoji__weight=0.0)
    assert "weight=-1" in refusal(data__sources__openmoji__weight=-1)
    e = config.resolve(changed(data__patch=2, model__patch=2), FAMILIES)
    assert e.data.patches == e.model.tokens == 16


def test_a_row_too_short_for_a_picture_names_one_that_is_not():
    message = refusal(data__length=8)
    better = int(re.search(r"try (\d+)", message)[1])
    assert config.resolve(changed(data__length=better), FAMILIES).data.length == better


@pytest.mark.parametrize("name", ["steps", "batch", "accumulate", "log_every", "save_every"])
def test_counts_are_at_least_one(name):
    assert f"config.{name}=0 must be at least 1" in refusal(**{name: 0})


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 3), (10, 4), (2, 5)])
def test_accumulate_must_divide_the_batch(batch, accumulate):
    message = refusal(batch=batch, accumulate=accumulate)
    assert f"config.batch={batch}" in message and f"config.accumulate={accumulate}" in message
    for better in map(int, re.search(r"try (\d+) or (\d+)", message).groups()):
        config.resolve(changed(batch=better, accumulate=accumulate), FAMILIES)


@pytest.mark.parametrize(
    ("batch", "accumulate", "split", "better"),
    [(12, 1, 8, (8, 16)), (3, 1, 8, (8, 16)), (20, 2, 4, (16, 24)), (1000, 1, 128, (896, 1024))],
)
def test_a_batch_that_does_not_divide_over_devices_names_two_that_do(
    batch, accumulate, split, better
):
    e = tiny(batch=batch, accumulate=accumulate)
    with pytest.raises(UserError, match=rf"batch={batch}.*={split} devices") as error:
        config.check_devices(e, split)
    assert str(error.value).endswith(f"try {better[0]} or {better[1]}")
    assert ("accumulate" in str(error.value)) == (accumulate > 1)
    for size in better:
        config.check_devices(dataclasses.replace(e, batch=size), split)


def test_a_family_nobody_knows():
    message = refusal(family="tranfusion")
    hint = "is unknown (did you mean 'transfusion'?); have: "
    assert message.startswith(f"config.family='tranfusion' {hint}{', '.join(FAMILIES)}")
    assert "config.family=None" in refusal(family=None)


TWO = {"towers": 2, "untie": ("ffn",)}


def test_a_decoder_that_cannot_be_built():
    shape = vars(tiny().model.decoder)
    for changes, words in (
        ({"width": 30}, "decoder.width=30"),
        ({"width": 36, "heads": 12}, "decoder.width=36"),  # heads of odd width cannot turn
        ({"kv_heads": 3}, "decoder.kv_heads=3 must divide decoder.heads=4"),
        ({"heads": 0}, "decoder.heads=0 must be at least 1"),
        ({"unroll": -1}, "decoder.unroll=-1 must be at least 1"),
        ({"dropout": 1.0}, "decoder.dropout=1.0 must be at least 0 and below 1"),
        ({"dtype": "f32"}, "decoder.dtype='f32' is unknown; have: float32, bfloat16"),
        ({"norm": "both"}, "decoder.norm='both' is unknown; have: pre, post"),
        ({"untie": ("ffm",)}, "decoder.untie has 'ffm'; have: qkv, o, qk_norm, attn_norm, ffn"),
        ({"untie": ("ffn",)}, "decoder.towers=1 with decoder.untie=('ffn',); give 1 tower"),
        ({"towers": 0, "untie": ("ffn",)}, "decoder.towers=0 with decoder.untie=('ffn',); give 1"),
        ({"towers": 2}, "decoder.towers=2 with decoder.untie=(); give 1 tower with untie=()"),
        ({"untied_layers": (0,)}, "decoder.untied_layers=(0,) must ascend within 0 ... 1, and"),
        (TWO | {"untied_layers": (2,)}, "decoder.untied_layers=(2,) must ascend within 0 ... 1"),
        (TWO | {"untied_layers": (1, 0)}, "decoder.untied_layers=(1, 0) must ascend"),
        (TWO | {"untie": ("qk_norm",), "qk_norm": False}, "but decoder.qk_norm=False; take it"),
        (TWO | {"untie": ("ffn_norm",), "grouped": True}, "has none of qkv, o, ffn to group"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            DecoderConfig(**shape | changes)
        if better := re.search(r"try width=(\d+)", str(error.value)):
            DecoderConfig(**shape | changes | {"width": int(better[1])})
    DecoderConfig(**shape | TWO | {"untied_layers": (1,), "grouped": True})


def test_the_way_to_json_and_back():
    for e in (tiny(), tiny(seed=5, optim__ema=0.0)):
        assert config.resolve(json.loads(values.to_json(e)), FAMILIES) == e
    assert tiny(seed=5) != tiny()
    back = config.resolve(json.loads(values.to_json(tiny(optim__peak=0.125))), FAMILIES)
    assert back != tiny() and back.optim.peak == 0.125


def test_nothing_below_the_door_can_be_changed():
    e = tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.optim.peak = 1.0
    with pytest.raises(TypeError):
        e.data.sources["other"] = e.data.sources["openmoji"]


def test_a_config_dict_and_a_plain_dict_are_one_experiment():
    c = tiny_config()
    assert isinstance(c, ConfigDict)
    assert config.resolve(c, FAMILIES) == config.resolve(c.to_dict(), FAMILIES)
    c.optim.peek = 1.0
    with pytest.raises(UserError, match="'peak'"):
        config.resolve(c, FAMILIES)


def test_difference_lists_leaves():
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "gone": 4}
    new = {"a": 1, "b": {"c": 9, "d": {"e": "x"}}, "came": {"f": 5}}
    assert values.difference(old, new) == [
        "b.c: 2 -> 9",
        "b.d.e: 3 -> 'x'",
        "came: None -> {'f': 5}",
        "gone: 4 -> None",
    ]
    assert values.difference(old, copy.deepcopy(old)) == []
    assert values.difference(PLAIN, changed(optim__peak=0.5, seed=7)) == [
        f"optim.peak: {PLAIN['optim']['peak']} -> 0.5",
        "seed: 0 -> 7",
    ]


def test_load(tmp_path):
    assert config.load(str(ROOT / "experiments" / "quickstart.py")).family == "transfusion"
    with pytest.raises(UserError, match=r"none\.py does not exist"):
        config.load(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"get_config\(\)"):
        config.load(str(tmp_path / "empty.py"))


def staged(*parts) -> dict:
    return {f"s{i}": {"until": until, "weights": w} for i, (until, w) in enumerate(parts)}


def test_stages_of_a_mixture():
    e = config.resolve(
        changed(data__stages=staged((0.8, {"openmoji": 1}), (1, {"openmoji": 2}))), FAMILIES
    )
    assert [s.until for s in e.data.stages.values()] == [0.8, 1.0]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (staged((0.8, {"openmoji": 1})), "the last of data.stages ends at 0.8; it must end at 1"),
        (staged((0.8, {"openmoji": 1}), (0.5, {"openmoji": 1})), "s1.until=0.5 must lie above 0.8"),
        (staged((1.2, {"openmoji": 1})), "s0.until=1.2 must lie above 0.0 and at most at 1"),
        (staged((1.0, {"mine": 1})), "weights names mine; it must name every source: openmoji"),
        (staged((1.0, {"openmoji": -1})), "must be at least 0"),
        (staged((1.0, {"openmoji": 0})), "one of them above"),
    ],
)
def test_stages_that_cannot_be(stages, words):
    assert words in refusal(data__stages=stages)
