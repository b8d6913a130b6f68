"""Llama 3.2's ways: scaled frequencies, and outputs tied to embeddings."""

import json
import shutil

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from test_conversion import theirs

from mmjax import conversion, run, verification
from mmjax.convert import decoder, hub, llama
from mmjax.error import UserError
from mmjax.sample.engine import word_ids


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """(their directory, the workdir made of it)."""
    home = tmp_path_factory.mktemp("tied")
    source = theirs("llama_tied", home / "hub")
    return source, conversion.convert(source, home / "work", said=lambda _: None)


def test_outputs_are_torchs(tied, capsys):
    source, work = tied
    assert verification.verify(work, source) < 1e-4
    assert "not compared" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_another_scaling_shows(tied, tmp_path, kind):
    source, _ = tied
    other = tmp_path / "other"
    other.mkdir()
    for name in ("model.safetensors", "inputs.npz", "outputs.npz"):
        (other / name).symlink_to(source / name)
    given = json.loads((source / "config.json").read_text())
    given["rope_parameters"]["rope_type"] = kind
    (other / "config.json").write_text(json.dumps(given))
    work = conversion.convert(other, tmp_path / "work", said=lambda _: None)
    assert verification.verify(work, source) > 1e-2


def test_embeddings_and_outputs_come_apart(tied, tmp_path):
    """In two tables of equal numbers, of which both go out; theirs has one."""
    source, work = tied
    assert "lm_head.weight" not in hub.read(source).shapes
    held = conversion.hold(work)
    params = unflatten_dict(held.read("embed/table", "head/w"), sep="/")
    np.testing.assert_array_equal(params["embed"]["table"], params["head"]["w"].T)
    back = hub.read(conversion.convert(work, tmp_path / "back", said=lambda _: None))
    assert back.config["tie_word_embeddings"] is False
    wanted = hub.read(source).tensor("model.embed_tokens.weight")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        np.testing.assert_array_equal(back.tensor(name), wanted)
    assert llama.config(back.config) == llama.config(hub.read(source).config)


def test_a_second_table_beside_tied_ones_is_read(tied, tmp_path):
    """Where a file has outputs of their own, theirs takes them, whatever config.json says."""
    source, _ = tied
    known = hub.read(source)
    tensors = {name: known.tensor(name) for name in known.shapes}
    other = tmp_path / "other"
    other.mkdir()
    wrong = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1.0}
    hub.write(other, known.config, wrong.items())
    for tied_, place in ((True, "work"), (False, "apart")):
        hub.write(other, known.config | {"tie_word_embeddings": tied_}, wrong.items())
        work = conversion.convert(other, tmp_path / place, said=lambda _: None)
        assert verification.verify(work, source) > 0.1
        held = conversion.hold(work).read("head/w")["head/w"]
        np.testing.assert_array_equal(held.T, wrong["lm_head.weight"])


def test_ids_that_there_are_none_of(tied):
    given = hub.read(tied[0]).config
    none = given | {"bos_token_id": None, "eos_token_id": [2, 5], "pad_token_id": None}
    v = llama.vocabulary(none)
    assert (v.bos, v.eos, v.pad, v.stops) == (-1, 2, 2, (5,))
    written = np.flatnonzero(~np.asarray(word_ids(v)))
    assert written.tolist() == [2, 5]  # all else is a word, 0 too
    assert llama.given(llama.config(none), v)["eos_token_id"] == [2, 5]
    assert llama.given(llama.config(none), v)["bos_token_id"] is None
    v = llama.vocabulary(none | {"eos_token_id": None})
    assert (v.eos, v.pad, v.stops) == (-1, 0, ())
    assert llama.given(llama.config(none), v)["eos_token_id"] is None


def test_the_length_before_scaling_may_stand_elsewhere(tied):
    given = dict(hub.read(tied[0]).config)
    rope = dict(given["rope_parameters"])
    length = rope.pop("original_max_position_embeddings")
    for more in ({"original_max_position_embeddings": length}, {"max_position_embeddings": length}):
        c = llama.config(given | {"rope_parameters": rope} | more)
        assert c == llama.config(given)


def test_files_beside_say_where_texts_stop_and_how_long_they_are(tied, tmp_path):
    source = tmp_path / "hub"
    shutil.copytree(tied[0], source)
    (source / hub.GENERATION).write_text(json.dumps({"eos_token_id": [2, 7]}))
    given = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(given | {"max_position_embeddings": 33}))
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    assert run.read_vocabulary(work, 0).stops == (7,)
    assert run.read_config(work).data.length == 33
    assert run.read_vocabulary(tied[1], 0).stops == ()


@pytest.mark.parametrize("scaling", [(), (2.0,), (8.0, 1.0, 4.0, 8192.0)])
def test_scalings_go_there_and_back(tied, scaling):
    given = hub.read(tied[0]).config
    c = llama.config(given)
    one = decoder.decoder_config(
        llama.DEFAULTS | dict(given) | {"rope_parameters": {"rope_theta": 5e5}}, 1e-5
    )
    one = type(one)(**vars(one) | {"rope_scaling": scaling})
    back = llama.config(llama.given(type(c)(decoder=one, z_weight=0.0), llama.vocabulary(given)))
    assert back.decoder == one


def test_a_scaling_of_another_kind_is_refused(tied):
    c = llama.config(hub.read(tied[0]).config).decoder
    with pytest.raises(UserError, match=r"rope_scaling=\(1\.0, 2\.0\) must be"):
        type(c)(**vars(c) | {"rope_scaling": (1.0, 2.0)})
