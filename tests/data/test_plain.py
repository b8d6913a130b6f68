"""Text is text: with a tokenizer of any kind it never has an id with a meaning of its own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import (
    CORPUS,
    KINDS,
    SPECIAL,
    merged,
    unigram,
    unigram_bytes,
    unigram_first,
    unigram_wide,
    whole_words,
    word_level,
    word_piece,
)
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mmjax.batch import EOS, SEP, Image, Sentinel, Text, Vocabulary
from mmjax.data import plain
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError


def added():
    """A BPE with added tokens, special and not, one of which is a word and one white space."""
    t = bpe.train(CORPUS * 3, 300)
    t.add_special_tokens(["<|im_start|>"])
    t.add_tokens(["<image>", "<|user|>", "[INST]", "covid", "    "])
    t.add_tokens([AddedToken("<tool>", rstrip=True, lstrip=True, normalized=True)])
    return t


def own():
    return bpe.train(CORPUS * 3, 300)


def holed():
    """Words whose ids leave some out, where the library would put sentinels that are added."""
    t = Tokenizer(models.WordLevel({"<unk>": 0, "a": 3, "red": 4, "</s>": 7, "b": 9}, "<unk>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return t


TYPED = [
    *SPECIAL, *bpe.SENTINELS, *bpe.REGISTERS[:2], "[CLS]", "[UNK]", "<tool>", "<|im_start|>",
    "<|endoftext|>", "＜/s＞", "</S>", "<0x41>", plain.HIDDEN, f"{plain.HIDDEN}2", "▁", " ", "  ",
    "a", "red", "ring", "b", "\n", "é", "🍎", "<", "/s>", "covid", "    ",
]  # fmt: skip


@pytest.fixture(scope="module", params=[*KINDS, added, own, holed], ids=lambda kind: kind.__name__)
def loaded(request, tmp_path_factory):
    """(As it is, as it is loaded, the ids that have a meaning)."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    theirs = request.param()
    theirs.save(str(path))
    got = bpe.load(path)
    v = bpe.vocabulary(got)
    meant = {*v.sentinels} | {got.token_to_id(name) for name in (*SPECIAL, "[CLS]", "<tool>")}
    meant |= {i for i, token in got.get_added_tokens_decoder().items() if token.special}
    names = ["<unk>", "[UNK]"]  # what is not known has no other id
    names += ["[INST]"] * (request.param is merged)  # learnt from texts, and nowhere called special
    return theirs, got, v, meant - {None, *(got.token_to_id(name) for name in names)}


def texts():
    return st.lists(st.sampled_from(TYPED) | st.text(max_size=3), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(some=st.lists(texts(), min_size=1, max_size=4), later=st.booleans())
def test_no_text_has_an_id_with_a_meaning(loaded, some, later):
    _, got, v, meant = loaded
    for vocab in (None, v):
        for ids in bpe.encode_all(got, some, vocab, [later] * len(some)):
            assert not meant & set(ids)
            assert max(ids, default=0) < v.size
    parts = [Text(t) for t in some]
    laid = bpe.lay_out([SEP, *parts, EOS], got, v, 1, False, end=False)
    at = [i for i, token in enumerate(laid["tokens"].tolist()) if token in meant]
    assert at == [0, 1, len(laid["tokens"]) - 1]  # BOS, SEP, EOS


@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.sampled_from(["a", "red", "ring", " ", "b", "é", "  "])).map("".join))
def test_other_texts_have_the_ids_they_had(loaded, text):
    theirs, got, *_ = loaded
    theirs.no_padding(), theirs.no_truncation()
    assert bpe.encode(got, text) == theirs.encode(text, add_special_tokens=False).ids


def test_the_library_would_have_made_sentinels_of_them():
    """The reason for these tests, one a kind; and what is typed is still told from one another."""
    for kind, text in (
        (unigram, "a </s> b"), (word_level, "a </s> b"), (whole_words, "</s>"), (added, "a<image>"),
        (merged, "a </s> b"), (word_piece, "a [SEP] b"), (unigram_wide, "＜/s＞"),
    ):  # fmt: skip
        t = kind()
        t.encode_special_tokens = True
        names = {t.id_to_token(i) for i in t.encode(text, add_special_tokens=False).ids}
        assert names & {*SPECIAL, "[SEP]"}, kind
    for kind in (unigram, whole_words, added, merged):
        t = kind()
        ids = [bpe.encode(t, f"a {name} b") for name in ("</s>", "<image>", "[INST]")]
        assert len(set(map(tuple, ids))) == 3, kind
        assert [t.decode(i).replace(" ", "") for i in ids] == ["a</s>b", "a<image>b", "a[INST]b"]


def test_a_byte_that_is_typed_is_not_the_byte():
    t = unigram_bytes()
    byte = t.token_to_id("<0x41>")
    assert byte in t.encode("<0x41>").ids
    assert byte not in bpe.encode(t, "a <0x41>") and t.token_to_id("<0xC3>") in bpe.encode(t, "é")


def test_ids_that_the_models_vocabulary_gives_a_meaning(tmp_path):
    """Image codes that have names, an end that config.json alone knows; but no single character."""
    words = ["<unk>", "IMGIMGAZ", "IMGIMGBZ", "STOP", "#", "\n", "end", "red"]
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = "red IMGIMGAZ IMGIMGBZ STOP # end"
    assert bpe.encode(t, text) == [7, 1, 2, 3, 4, 6]
    none = dict.fromkeys(("bos", "boi", "eoi", "sep", "eoss"), -1)
    v = Vocabulary(8, pad=6, **none | {"eos": 3}, codes=1, code_count=2, stops=(4, 5, 6))
    assert bpe.encode_all(t, [text], v) == [[7, 0, 0, 0, 4, 6]]
    unknown = Vocabulary(8, pad=6, **none | {"eos": 0})  # as where unknown words are EOS
    assert bpe.encode_all(t, [f"{text} what"], unknown) == [[7, 1, 2, 3, 4, 6]]


def test_what_is_not_known_is_no_end_of_text():
    """Where a tokenizer has one id for both."""
    t = Tokenizer(models.WordLevel({"</s>": 0, "red": 1}, "</s>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert t.encode("red what").ids == [1, 0]
    assert bpe.encode(t, "red what </s>") == [1]


def test_only_a_documents_first_text_begins_with_a_space_where_a_tokenizer_says_so():
    """Metaspace with prepend_scheme="first": behind a picture or a token a text goes on."""
    t = bpe.with_sentinels(unigram_first())
    v = bpe.vocabulary(t)
    first, later = bpe.encode_all(t, ["ring", "ring"], v, [False, True])
    assert t.id_to_token(first[0]) == "▁" and later == first[1:]
    picture, token = Image(b"", loss=False), Sentinel("<image>", id=3)
    ring = Text("ring")

    def words(*parts):
        ids = bpe.lay_out([*parts], t, v, 1, False, end=False)["tokens"].tolist()
        return [i for i in ids if i not in v.sentinels and i != 3]

    assert words(ring) == words(SEP, ring) == first
    assert words(picture, ring) == words(token, ring) == later
    assert words(ring, picture, ring) == first + later
    assert words(ring, ring) == first * 2  # a text behind a text begins anew


def test_holes_are_filled_before_sentinels_are_added(tmp_path):
    """The library counts pieces to find the next id, and gave sentinels ids of words."""
    bare = bpe.with_sentinels(holed())
    assert bare.token_to_id("<boi>") in (7, 9)
    path = tmp_path / "tokenizer.json"
    holed().save(str(path))
    got = bpe.load(path)
    v = bpe.vocabulary(got)
    own = [i for i in v.sentinels if i != v.eos]
    assert v.eos == 7 and sorted(own) == list(range(10, 10 + len(own))) and v.size == 10 + len(own)
    assert bpe.encode(got, "a red b") == [3, 4, 9]
    about = json.loads(word_level().to_str())
    more = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    about["added_tokens"] = [{"id": 30, "content": "<|far|>", **more, "special": True}]
    path.write_text(json.dumps(about))
    got = bpe.load(path)
    assert got.token_to_id("<|far|>") == 30 and bpe.vocabulary(got).pad == 31


def test_sentinels_that_a_model_lacks_are_refused_by_name():
    t = own()
    v = bpe.vocabulary(t)
    none = Vocabulary(v.size, eos=-1, sep=-1)
    for part, words in (
        (SEP, "this model has no mmjax.SEP; ask"), (EOS, "this model has no mmjax.EOS; leave"),
        (Sentinel("mask"), "no mmjax.MASK; train"), (Sentinel("registers"), "no mmjax.REGISTERS"),
        (Sentinel("huh"), "sentinel 'huh' is unknown; have: sep, eos, mask, registers"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            bpe.lay_out([part], t, none, 1, False)


def test_markup_is_told_from_words():
    words = ("covid", "    ", "\n\n", "▁▁", "don't", "état", "日本", "🍎", "a-b", "3.5")
    assert all(map(plain.is_word, words))
    marks = ("<image>", "[INST]", "<|user|>", "＜x＞", "{x}", "__x__", "### x", "【x】", "x:")
    assert not any(map(plain.is_word, marks))
