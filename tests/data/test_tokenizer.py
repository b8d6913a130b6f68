"""Text to ids and back whatever the text, and documents written out as positions."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mmjax.batch import IMAGE, SEP, TEXT, Image, Text
from mmjax.data import tokenizer as bpe
from mmjax.data.record import Record, pack, unpack
from mmjax.data.sets import openmoji as data
from mmjax.data.tokenizer import SENTINELS, decode, encode, lay_out
from mmjax.error import UserError

CAPTIONS = ["a red apple", "a red heart", "an apple", "man swimming, light skin tone"]
TOKENIZER = bpe.train(CAPTIONS * 3, 320)
VOCABULARY = bpe.vocabulary(TOKENIZER)
TEXTS = VOCABULARY.size - len(SENTINELS)


@pytest.fixture(scope="module", params=["trained", "loaded", "pickled"])
def tokenizer(request, tmp_path_factory):
    if request.param == "loaded":
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        TOKENIZER.save(str(path))
        return bpe.load(path)
    return pickle.loads(pickle.dumps(TOKENIZER)) if request.param == "pickled" else TOKENIZER


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_but_for_white_space_around_it(text):
    ids = encode(TOKENIZER, text)
    assert decode(TOKENIZER, ids) == text.strip()
    assert all(0 <= i < TEXTS for i in ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SENTINELS, "a", " ", "red", "<", ">", "\n", "é", "🍎"])))
def test_a_sentinels_name_in_a_text_is_plain_text(parts):
    text = "".join(parts)
    ids = encode(TOKENIZER, text)
    assert max(ids, default=0) < TEXTS
    assert decode(TOKENIZER, ids) == text.strip()


@pytest.mark.parametrize("name", SENTINELS)
def test_sentinels_stay_plain_text_after_saving_and_loading(tokenizer, name):
    text = f"a {name} apple"
    assert not set(encode(tokenizer, text)) & set(VOCABULARY.sentinels)
    assert decode(tokenizer, encode(tokenizer, text)) == text
    # What the library does unless told: the reason for the test.
    fresh = bpe.train(CAPTIONS, 300)
    assert fresh.token_to_id(name) in fresh.encode(text).ids


def test_the_id_space_is_text_then_sentinels_then_image_codes(tokenizer):
    n = tokenizer.get_vocab_size()
    one, many = bpe.vocabulary(tokenizer), bpe.vocabulary(tokenizer, codes=64)
    assert one.sentinels == tuple(range(n - len(SENTINELS), n)) == many.sentinels
    assert (one.size, one.code_count) == (n, 0)
    assert (many.size, many.codes, many.code_count) == (n + 64, n, 64)
    v = VOCABULARY
    ids = encode(tokenizer, "red apple")
    whole = [v.bos, *ids, v.boi, v.pad, v.eoi, *ids, v.eos]
    assert decode(tokenizer, whole) == "red apple red apple"
    assert decode(tokenizer, np.array(ids)) == "red apple"


def test_the_layout_of_chameleon():
    v = bpe.chameleon_vocabulary()
    assert (v.size, v.codes, v.code_count, v.boi, v.eoi) == (65536, 4, 8192, 8197, 8196)
    codes = set(range(v.codes, v.codes + v.code_count))
    assert len(set(v.sentinels)) == 15 and not codes & set(v.sentinels) and max(v.sentinels) < 65536


def test_a_tokenizer_from_elsewhere_gets_our_sentinels_behind_its_own_ids(tmp_path):
    theirs = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "red": 2, "apple": 3}, "[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.Whitespace()
    theirs.add_special_tokens(["<s>", "<pad>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    got = bpe.load(tmp_path / "tokenizer.json")
    v = bpe.vocabulary(got)
    assert v.pad == 4 and v.bos == 1  # its own <pad>, and its <s> as BOS
    assert v.size == 5 + len(SENTINELS) - 2
    assert encode(got, "red apple") == [2, 3] and sorted(v.sentinels)[2:] == list(range(5, v.size))


def test_our_own_names_come_before_those_of_others(tmp_path):
    theirs = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "<bos>": 2, "</s>": 3}, "[UNK]"))
    theirs.add_special_tokens(["<s>", "<bos>", "</s>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    v = bpe.vocabulary(bpe.load(tmp_path / "tokenizer.json"))
    assert (v.bos, v.eos) == (2, 3)


def test_a_separator_is_a_whole_part_and_never_part_of_a_text():
    v = VOCABULARY
    pair = [Text("red", loss=False), replace(SEP, loss=False), Text("apple")]
    got = lay_out(pair, TOKENIZER, v, 4, True)
    red, apple = encode(TOKENIZER, "red"), encode(TOKENIZER, "apple")
    assert got["tokens"].tolist() == [v.bos, *red, v.sep, *apple, v.eos]
    assert got["weight"].tolist() == [0] * (len(red) + 2) + [1] * (len(apple) + 1)
    within = lay_out([Text("red <sep> apple")], TOKENIZER, v, 4, True)
    assert v.sep not in within["tokens"]


@pytest.mark.parametrize("name", ["<sep>", "<eos>", "<mask:0>", "<register:0>", "<boi>", "<pad>"])
@pytest.mark.parametrize("registers", [False, True])
def test_a_part_that_is_exactly_a_sentinels_name_is_text(name, registers):
    """As it comes from a data set, whose record then trained the sentinel, or stopped the run."""
    t = bpe.train(CAPTIONS * 3, 320)
    t = bpe.with_registers(t) if registers else t
    v = bpe.vocabulary(t)
    record = unpack(pack(Record("1", (Text("red"), Text(name)))))
    got = lay_out(record.document, t, v, 4, True)["tokens"].tolist()
    assert [i for i in got if i in v.sentinels] == [v.bos, v.eos]
    assert decode(t, got) == f"red {name}"
    with pytest.raises(TypeError, match="a record holds Text and Image, not Sentinel"):
        pack(Record("1", (Text("red"), SEP)))


def test_a_text_begins_as_a_word_within_a_text_does(tokenizer):
    """So a caption has the same ids behind a picture, behind BOS and inside a sentence."""
    apple = encode(tokenizer, "apple")
    assert apple == encode(tokenizer, " apple") == encode(tokenizer, "red apple")[-len(apple) :]
    assert encode(tokenizer, "redapple")[-len(apple) :] != apple
    assert encode(tokenizer, "") == []


def test_frequent_words_are_short_and_the_size_is_kept(tokenizer):
    assert len(encode(tokenizer, "a red apple")) < len(encode(tokenizer, "u fsg bqqmf")) / 2
    assert bpe.vocabulary(bpe.train(CAPTIONS, 275)).size == 275


def test_every_real_caption_survives(openmoji):
    tokenizer = bpe.load(openmoji / "tokenizer.json")
    records = data.read(openmoji, "test")
    captions = [records[i].caption for i in range(len(records))]
    assert [decode(tokenizer, encode(tokenizer, c)) for c in captions] == captions
    assert np.mean([len(encode(tokenizer, c)) for c in captions]) < 10


def test_files_that_are_no_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="does not exist; `mmjax data build`"):
        bpe.load(path)
    path.write_text('{"version": "1.0", "mod')
    with pytest.raises(UserError, match="is damaged"):
        bpe.load(path)
    with pytest.raises(UserError, match="271"):
        bpe.train(CAPTIONS, 200)


P = 4
V = VOCABULARY
A, B = encode(TOKENIZER, "a red apple"), encode(TOKENIZER, "an apple")
DOCUMENT = [Text("a red apple"), Image(b""), Text("an apple", loss=False), Image(b"", loss=False)]


def by_hand(shared, end=True):
    """(token, modality, image, weight, step of the position) one after the other."""
    patch = 0 if shared else 1
    rows = [(V.bos, TEXT, 0, 0, 0)]
    rows += [(t, TEXT, 0, 1, 1) for t in A]
    rows += [(V.boi, TEXT, 0, 1, 1), (V.pad, IMAGE, 1, 1, 1)]
    rows += [(V.pad, IMAGE, 1, 1, patch)] * (P - 1) + [(V.eoi, TEXT, 0, 1, 1)]
    rows += [(t, TEXT, 0, 0, 1) for t in B]
    rows += [(V.boi, TEXT, 0, 0, 1), (V.pad, IMAGE, 2, 0, 1)]
    rows += [(V.pad, IMAGE, 2, 0, patch)] * (P - 1) + [(V.eoi, TEXT, 0, 0, 1)]
    rows += [(V.eos, TEXT, 0, 1, 1)] * end
    tokens, modality, image, weight, step = map(np.array, zip(*rows, strict=True))
    return dict(
        tokens=tokens, modality=modality, image=image, weight=weight, position=step.cumsum()
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_lay_out(shared, end):
    got = lay_out(DOCUMENT, TOKENIZER, V, P, shared, end)
    want = by_hand(shared, end)
    assert set(got) == set(want)
    for name, field in got.items():
        np.testing.assert_array_equal(field, want[name], err_msg=name)
        assert field.dtype == (np.float32 if name == "weight" else np.int32)
    assert (got["position"][-1] == len(got["tokens"]) - 1) != shared


def test_patches_share_a_position_or_follow_in_raster_order():
    shared, raster = (lay_out([Image(b"")], TOKENIZER, V, 9, s) for s in (True, False))
    picture = shared["modality"] == IMAGE
    np.testing.assert_array_equal(shared["position"][picture], [2] * 9)
    np.testing.assert_array_equal(raster["position"][picture], 2 + np.arange(9))
    assert shared["position"][-1] == 4 and raster["position"][-1] == 12


def test_ends_fill_a_last_text_up():
    """To a multiple of their number with what is written; pictures and prompts get one or none."""
    red = Text("red")
    plain = lay_out([Image(b""), red], TOKENIZER, V, P, True)
    words = len(plain["tokens"]) - P - 4
    for ends in (1, 4, words, words + 1):
        got = lay_out([Image(b""), red], TOKENIZER, V, P, True, ends=ends)
        count = int((got["tokens"] == V.eos).sum())
        assert (words + count) % ends == 0 and 1 <= count <= ends
        np.testing.assert_array_equal(got["tokens"][: len(plain["tokens"])], plain["tokens"])
        assert (got["weight"][-count:] == 1).all()
        assert (np.diff(got["position"][-count:]) == 1).all()
    asked = lay_out([Text("red", loss=False), red], TOKENIZER, V, P, True, ends=4)
    assert len(asked["tokens"]) == 1 + words + 4 * (words // 4 + 1)
    for document, end in (([red, Image(b"")], True), ([red], False)):
        once = lay_out(document, TOKENIZER, V, P, True, end)
        got = lay_out(document, TOKENIZER, V, P, True, end, ends=4)
        np.testing.assert_array_equal(got["tokens"], once["tokens"])


def test_documents_of_nothing_much():
    assert lay_out([], TOKENIZER, V, P, True)["tokens"].tolist() == [V.bos, V.eos]
    assert lay_out([Text("")], TOKENIZER, V, P, True, end=False)["tokens"].tolist() == [V.bos]
    with pytest.raises(TypeError, match="not str"):
        lay_out(["a red apple"], TOKENIZER, V, P, True)


def test_a_vocabulary_without_bos_or_eos_has_none_in_its_rows():
    """Of imported models: their ids would be -1, which is the table's last row."""
    document = [Text("a red apple")]
    whole = lay_out(document, TOKENIZER, V, P, True)
    for lacks, cut in (({"bos": -1}, slice(1, None)), ({"eos": -1}, slice(0, -1))):
        found = lay_out(document, TOKENIZER, replace(V, **lacks), P, True)
        assert found["tokens"].tolist() == whole["tokens"][cut].tolist()
        assert found["position"].tolist() == list(range(len(found["tokens"])))


def test_a_separator_that_a_vocabulary_lacks_is_refused():
    """Of imported models: its id would be -1."""
    t = bpe.train(["a red apple"], 300)
    vocab = bpe.vocabulary(t)
    asked = [Text("a"), replace(SEP, loss=False)]
    assert vocab.sep in bpe.lay_out(asked, t, vocab, 4, False)["tokens"]
    with pytest.raises(UserError, match=r"^this model has no mmjax.SEP; ask in the words"):
        bpe.lay_out(asked, t, replace(vocab, sep=-1), 4, False)
