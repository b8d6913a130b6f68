"""Small tokenizers of every kind that models are published with; without mmjax, see make_words."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<s>", "</s>", "<image>", "<|user|>", "[INST]", "<unk>"]
WORDS = ["a", "b", "red", "ring", "user", "image", "INST", "s", "<", ">", "/", "|", "[", "]"]
CORPUS = ["a red ring", "b a red", "user image INST s", "< / > | [ ]", "0x41 <0x41>"]


def unigram(**changes):
    pieces = ["<unk>", "<s>", "</s>", "<image>", "<|user|>", "[INST]", "▁"]
    letters = sorted({x for word in WORDS for x in word} | set("0x41"))
    scored = [(p, 0.0) for p in pieces] + [(p, -3.0) for p in letters]
    scored += [("▁a", -1.0), ("▁red", -1.5), ("ring", -1.5)]
    if changes.get("byte_fallback"):
        scored += [(f"<0x{n:02X}>", -2.0) for n in range(256)]
    t = Tokenizer(models.Unigram(scored, unk_id=0, **changes))
    t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return t


def unigram_bytes():
    return unigram(byte_fallback=True)


def unigram_first():
    """As `unigram`, which puts a space before a document's first text alone; in one piece."""
    t = unigram()
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return t


def unigram_wide():
    """Whose normaliser makes `<` of the wide `＜`."""
    t = unigram()
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return t


def word_level():
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, "<unk>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return t


def word_level_marked():
    """The same whose special words are marked so, and cut texts, and pad them."""
    t = word_level()
    t.add_special_tokens(SPECIAL[:2])
    t.enable_padding(pad_id=1, pad_token="<s>", length=12)
    t.enable_truncation(6)
    return t


def word_piece():
    names = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *SPECIAL[:-1], *WORDS, "##a", "##ed", "r"]
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return t


def whole_words():
    """A BPE of bytes that looks words up before it merges."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\S+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    about = json.loads(t.to_str())
    for name in SPECIAL:
        about["model"]["vocab"].setdefault(name, len(about["model"]["vocab"]))
    about["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(about))


def merged():
    """A BPE that has learned to merge the special strings themselves."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.pre_tokenizer, t.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL)
    t.train_from_iterator(["a </s> <image> red <|user|> [INST] <s> ring b"] * 9, trainer)
    about = json.loads(t.to_str())
    about["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(about))


def prefixed():
    """As the first Llamas: a BPE with bytes, whose normaliser puts a space before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    pieces += ["▁", *sorted({x for word in WORDS for x in word}), "re", "red", "▁red", "▁a", "in"]
    merges = [("r", "e"), ("re", "d"), ("▁", "red"), ("▁", "a"), ("i", "n")]
    vocab = {piece: n for n, piece in enumerate(pieces)}
    t = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return t


def in_one_piece():
    """As newer ones: Metaspace puts a space before a document's first text, and does not part."""
    t = prefixed()
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return t


KINDS = [
    unigram, unigram_bytes, unigram_first, unigram_wide, word_level, word_level_marked, word_piece,
    whole_words, merged, prefixed, in_one_piece,
]  # fmt: skip
