"""The interleaved engine with random weights: its grammar, its caches, and that rows are alone."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_chameleon_config

from mmjax import config, run
from mmjax.batch import IMAGE, Batch, Vocabulary, causal_mask
from mmjax.mesh import Rules, make_mesh
from mmjax.models import chameleon
from mmjax.sample.decode import logits_of
from mmjax.sample.engine import (
    Options,
    Plan,
    advance,
    begin,
    code_logits,
    pick,
    word_ids,
)
from mmjax.sample.streams import compress, stream_of
from mmjax.sample_config import Choice

V = Vocabulary(52, masks=(7, 8), codes=40, code_count=12)
C = config.resolve(tiny_chameleon_config(), run.families()).model
RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
MODEL = chameleon.build(C, V, RULES)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
PARTS = MODEL.parts
SIZE = C.tokens  # 16
COLD = Choice(0.0, 0, 1.0, 0.0, 1.0)
WARM = replace(COLD, temperature=1.0)
COUNT = 60


def rows(*prompts, length: int = 40) -> Batch:
    """Prompts of ids; 12 to 15 are words, codes are pictures' (between BOI and EOI)."""
    tokens = np.full((len(prompts), length), V.pad, np.int32)
    for row, ids in zip(tokens, prompts, strict=True):
        row[: len(ids)] = ids
    held = (np.arange(length)[None] < np.array([[len(p)] for p in prompts])).astype(np.int32)
    code = ((tokens >= V.codes) & (held > 0)).astype(np.int32)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), held.shape) * held
    pixels = np.zeros((len(prompts), 1, 0, 0, 3), np.uint8)
    return Batch(tokens, code, held, place, code, held.astype(np.float32), pixels)


def plan(count: int, **columns) -> Plan:
    base = dict(left=0, close=V.eoi, pictures=0, until=0, limit=COUNT, columns=999, words=99)
    known = {k: np.broadcast_to(np.int32(v), (count,)) for k, v in (base | columns).items()}
    return Plan(**known, ends=np.full((count, 2), V.eos, np.int32))


PICTURE = [V.boi, *(40 + np.arange(16) % 12).tolist(), V.eoi]
MIXED = [
    [V.bos, 12, 13, V.boi],  # draws at once
    [V.bos, 14],  # writes, and may draw
    [V.bos, *PICTURE, 15, 12],  # has seen a picture
    [V.bos, *PICTURE, 13, V.boi],  # draws with a picture in its prompt
]
ASKED = plan(4, left=[SIZE + 1, 0, 0, SIZE + 1], pictures=[0, 2, 1, 0], until=[1, 0, 0, 1])


def whole_of(parts, params):
    @partial(jax.jit, static_argnames="options")
    def whole(prompt, asked, keys, options):
        state = begin(parts, params, prompt, asked, options)
        return advance(parts, params, state, asked, keys, jnp.int32(options.count), options)

    return whole


whole = whole_of(PARTS, PARAMS)


def keys(count: int, seed: int = 0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(np.arange(count))


def written(state) -> list[list[int]]:
    return [[t for t in row if t != V.pad] for row in np.asarray(state.tokens).tolist()]


def runs_of_codes(ids: list[int]) -> list[tuple[int, int, int | None]]:
    """(what stands before, length, what stands behind) of each run of codes."""
    found, i = [], 0
    while i < len(ids):
        j = i
        while j < len(ids) and ids[j] >= V.codes:
            j += 1
        if j > i:
            found.append((ids[i - 1] if i else V.boi, j - i, ids[j] if j < len(ids) else None))
        i = j + 1
    return found


WAYS = {
    "alone": Options(COUNT, COUNT, 2, WARM, WARM),
    "guided": Options(COUNT, COUNT, 2, WARM, WARM, guidance=3.0),
    "three": Options(COUNT, COUNT, 2, WARM, WARM, guidance=3.0, image_guidance=1.2),
    "contrast": Options(COUNT, COUNT, 2, WARM, WARM, contrast=0.1, contrast_k=2),
}
WAYS["masked"] = replace(WAYS["three"], masked=True)


def around(prompt: list[int], answer: list[int], masked: bool) -> list[int]:
    """What the stream of pictures holds: those of both, and a mask for each text of the prompt."""
    found, number = [], 0
    for before, token in zip([None, *prompt], prompt, strict=False):
        if token >= V.codes or token in (V.bos, V.boi, V.eoi):
            found.append(token)
        elif masked and not 12 <= (before or 0) <= 15:
            found.append(V.masks[number])
            number += 1
    return found + [t for t in answer if t >= V.codes or t in (V.boi, V.eoi)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_picture_has_exactly_its_codes_between_its_sentinels(way, seed):
    state = whole(rows(*MIXED), ASKED, keys(4, seed), WAYS[way])
    lines = written(state)
    pictures = [runs_of_codes(ids) for ids in lines]
    assert [len(p) for p in pictures[:1] + pictures[3:]] == [1, 1]
    assert len(pictures[1]) <= 2 and len(pictures[2]) <= 1
    for found in pictures:
        assert all(run == (V.boi, SIZE, V.eoi) for run in found)
    for ids in lines:
        assert not {V.bos, V.sep, V.eoss, *V.masks} & set(ids)
        assert ids.count(V.eos) == (ids[-1] == V.eos)


def test_rows_that_may_draw_do():
    """Else the grammar above would have been tested on nothing."""
    found = []
    for seed in range(6):
        state = whole(rows(*MIXED), ASKED, keys(4, seed), WAYS["alone"])
        found += [len(runs_of_codes(ids)) for ids in written(state)[1:3]]
    assert 1 in found and max(found) <= 2


def test_each_text_is_one_mask_in_the_streams_beside():
    """CM3Leon's unconditional stream; a text more than there are masks takes the last again."""
    prompts = [
        [V.bos, 12, 13, *PICTURE, 14, V.boi], [V.bos, *PICTURE, 12], [V.bos, V.boi],
        [V.bos, 15, *PICTURE, 12, *PICTURE, 13, 14, V.boi],
    ]  # fmt: skip
    asked = plan(4, left=[SIZE + 1, 0, SIZE + 1, SIZE + 1])
    one, two = V.masks
    image = [
        [V.bos, one, *PICTURE, two, V.boi], [V.bos, *PICTURE, one], [V.bos, V.boi],
        [V.bos, one, *PICTURE, two, *PICTURE, two, V.boi],
    ]  # fmt: skip
    blank = [[V.bos, one, V.boi], [V.bos, one], [V.bos, one, V.boi], [V.bos, one, V.boi]]
    for name, masked, want in (
        ("image", True, image), ("blank", True, blank), ("full", True, prompts),
        ("blank", False, [[t for t in row if t != one] for row in blank]),
        ("image", False, [[t for t in row if t not in V.masks] for row in image]),
    ):  # fmt: skip
        found = stream_of(name, rows(*prompts, length=60), np.asarray(asked.left) > 0, V, masked)
        like = rows(*want, length=60)
        for field in ("tokens", "segment", "position", "modality"):
            np.testing.assert_array_equal(
                getattr(found, field), getattr(like, field), (name, field)
            )


def untied(layers):
    """The same family with weights of their own for pictures."""
    parts = ("qkv", "o", "qk_norm", "attn_norm", "ffn", "ffn_norm", "final_norm")
    shape = replace(C.decoder, towers=2, untie=parts, untied_layers=layers, grouped=True)
    model = chameleon.build(replace(C, decoder=shape), V, RULES)
    params = jax.jit(model.init)(jax.random.key(1))
    params["decoder"]["final_norm_1"] *= 3.0
    return model.parts, params


@pytest.mark.parametrize(
    ("way", "layers"), [("alone", None), ("three", None), ("three", (1,)), ("masked", None)]
)
def test_cached_steps_equal_recomputation(way, layers):
    """Over words, a picture and words again: each stream's last output, from its whole sequence."""
    options = WAYS[way]
    parts, params = (PARTS, PARAMS) if layers is None else untied(layers)
    whole = whole_of(parts, params)
    asked = plan(4, left=[SIZE + 1, 0, 0, SIZE + 1], pictures=[0, 2, 1, 0], limit=30)
    state = whole(rows(*MIXED), asked, keys(4), replace(options, count=29))
    for row, ids in enumerate(written(state)):
        new = ids[:-1] if ids[-1] == V.eos else ids  # an end is not read
        full = MIXED[row] + new
        pictures = around(MIXED[row], new, options.masked)
        last = len(full) - full[::-1].index(V.boi) - 1 if V.boi in full else None
        tail = [] if last is None else full[last : last + SIZE + 2]
        # An open picture of the prompt is all the blank stream holds; else the last one begun.
        bare = [V.bos, *V.masks[: options.masked]]
        blank = [*bare, *tail] if V.boi in MIXED[row][-1:] + ids else bare
        for s, sequence in enumerate([full, pictures, blank][: len(options.streams)]):
            batch = rows(sequence, length=64)
            x = parts.embed(params, jnp.asarray(batch.tokens))
            at = causal_mask(batch), jnp.asarray(batch.position)
            hidden, _ = parts.run(params, x, *at, tower=jnp.asarray(batch.modality))
            want = hidden[0, len(sequence) - 1]
            np.testing.assert_allclose(state.hidden[s, row], want, atol=1e-5, err_msg=str((row, s)))
    assert np.abs(np.asarray(state.hidden[0, 0] - state.hidden[0, 1])).max() > 1e-2


def last_output(parts, batch, mask):
    """[d] of the last position of a batch's one row."""
    x, at = parts.embed(PARAMS, jnp.asarray(batch.tokens)), jnp.asarray(batch.position)
    found, _ = parts.run(PARAMS, x, mask, at, tower=jnp.asarray(batch.modality))
    return np.asarray(found[0, int(batch.segment.sum()) - 1])


@pytest.mark.parametrize("way", ["alone", "three"])
def test_behind_registers_nothing_before_them_is_seen(way):
    """Words, and a picture, behind a picture and registers: as one pass under the mask."""
    registers = (9, 10)
    parts = chameleon.build(C, replace(V, registers=registers), RULES).parts
    prompts = [[V.bos, *PICTURE, 9, 10, 12], [V.bos, *PICTURE, 9, 10, 12, V.boi]]
    asked = plan(2, left=[0, SIZE + 1], until=[0, 1], limit=[7, 10])
    options = replace(WAYS[way], count=10)
    state = whole_of(parts, PARAMS)(rows(*prompts), asked, keys(2), options)
    for r, ids in enumerate(written(state)):
        full = prompts[r] + ids[: 6 if r == 0 else 9]  # the last is not read
        image = [t for t in full if t != 12] if r else prompts[0][:-1]
        for s, sequence in enumerate([full, image][: len(options.streams)]):
            batch = rows(sequence, length=48)
            want = last_output(parts, batch, causal_mask(batch, registers))
            open_to_all = last_output(parts, batch, causal_mask(batch))
            if V.eos not in ids:
                np.testing.assert_allclose(state.hidden[s, r], want, atol=1e-5)
            if sequence[-1] not in registers:
                assert np.abs(want - open_to_all).max() > 1e-2


def test_words_are_counted_apart_from_pictures():
    """Free answers: no more words than asked for, however much room their pictures leave."""
    asked = plan(3, pictures=[2, 2, 0], words=[5, 0, 3], limit=5 + 2 * (SIZE + 2))
    options, found = Options(COUNT, COUNT, 2, WARM, WARM), []
    for seed in range(4):
        state = whole(rows([V.bos], [V.bos], [V.bos]), asked, keys(3, seed), options)
        for ids, most in zip(written(state), [5, 0, 3], strict=True):
            words = [t for t in ids if t < V.codes and t not in (V.boi, V.eoi, V.eos)]
            found.append((len(words), most))
            assert len(words) <= most and ids[-1] == V.eos
    assert {(5, 5), (3, 3)} <= set(found)


def test_ends_and_pictures_are_not_penalised_for_repetition():
    """Ids of the prompt count as seen; EOS and BOI among them stay as likely as they were."""
    strict = replace(COLD, repetition=1e6)
    prompt, asked = rows([V.bos, V.eos, V.boi, 12, 13]), plan(1, pictures=1, limit=40)
    options = Options(COUNT, COUNT, 1, strict, COLD)
    for name, wanted in (("eos", V.eos), ("boi", V.boi), ("word", 12)):
        state = begin(PARTS, PARAMS, prompt, asked, options)
        head = jnp.zeros_like(PARAMS["head"]["w"])
        head = head.at[:, wanted].set(state.hidden[0, 0])
        head = head.at[:, 14].set(0.01 * state.hidden[0, 0])  # a word not seen, far less likely
        params = PARAMS | {"head": {"w": head}}
        token = pick(PARTS, params, state, asked, keys(1), options)
        logit = float(logits_of(PARTS, params, state.hidden)[0, 0, wanted])
        assert logit > 0.1 and (int(token[0]) == wanted) == (name != "word"), name


def test_guidance_of_one_is_the_condition_alone():
    base = Options(COUNT, COUNT, 2, COLD, COLD)
    plain = np.asarray(whole(rows(*MIXED), ASKED, keys(4), base).tokens)
    ones = replace(base, guidance=1.0, image_guidance=1.0)
    assert len(ones.streams) == 3
    np.testing.assert_array_equal(plain, whole(rows(*MIXED), ASKED, keys(4), ones).tokens)
    two = replace(base, guidance=float(np.nextafter(1.0, 2.0)))  # 1 in f32, with its stream
    assert len(two.streams) == 2 and np.float32(two.guidance) == 1.0
    np.testing.assert_array_equal(plain, whole(rows(*MIXED), ASKED, keys(4), two).tokens)
    strong = whole(rows(*MIXED), ASKED, keys(4), replace(base, guidance=5.0)).tokens
    assert (plain != np.asarray(strong)).any()


def test_a_row_does_not_depend_on_its_neighbours():
    options = WAYS["three"]
    state = whole(rows(*MIXED), ASKED, keys(4), options)
    turned = [2, 0, 3, 1]
    other = whole(
        rows(*(MIXED[i] for i in turned)),
        jax.tree.map(lambda x: np.asarray(x)[turned], ASKED),
        keys(4)[jnp.array(turned)],
        options,
    )
    np.testing.assert_array_equal(np.asarray(state.tokens)[turned], other.tokens)
    reseeded = whole(rows(*MIXED), ASKED, keys(4, seed=9), options)
    assert (np.asarray(state.tokens) != np.asarray(reseeded.tokens)).any(1).all()


def test_rows_stop_at_their_limit_their_end_or_their_last_picture():
    asked = plan(3, left=[0, SIZE + 1, 0], until=[0, 1, 0], limit=[5, 50, 9])
    asked = asked._replace(ends=np.array([[V.eos] * 2, [V.eos] * 2, [15, V.eos]], np.int32))
    state = whole(rows([V.bos, 12], [V.bos, V.boi], [V.bos, 13]), asked, keys(3), WAYS["alone"])
    first, second, third = written(state)
    assert len(first) == 5 or first[-1] == V.eos
    assert len(second) == SIZE + 1 and second[-1] == V.eoi
    assert len(third) == 9 or third[-1] in (15, V.eos)
    assert 15 not in third[:-1]
    assert int(state.step) < COUNT  # the loop ends when all rows have


def test_a_picture_is_not_begun_without_room():
    """Neither row has words left: the one without room can only end, the other only draw."""
    asked = plan(2, pictures=5, words=0, limit=[SIZE + 1, SIZE + 30])
    asked = asked._replace(ends=np.array([[V.eos] * 2, [-1] * 2], np.int32))
    options = Options(COUNT, COUNT, 2, WARM, WARM)
    state = begin(PARTS, PARAMS, rows([V.bos], [V.bos]), asked, options)
    done = jax.jit(advance, static_argnums=(0, 6))(
        PARTS, PARAMS, state, asked, keys(2), jnp.int32(COUNT), options
    )
    short, long = written(done)
    assert short == [V.eos] and runs_of_codes(long) == [(V.boi, SIZE, V.eoi)] * 2


def test_guidance_and_contrast_take_each_stream_for_what_it_is():
    """Against numbers: streams or scales exchanged would give others."""
    full, image, blank = np.random.default_rng(0).normal(size=(3, 2, 12)).astype(np.float32)
    found = {
        name: np.asarray(code_logits(jnp.asarray(streams), WAYS[name]))
        for name, streams in (
            ("alone", full[None]), ("guided", np.stack([full, blank])),
            ("three", np.stack([full, image, blank])), ("contrast", np.stack([full, blank])),
        )
    }  # fmt: skip
    np.testing.assert_array_equal(found["alone"], full)
    np.testing.assert_allclose(found["guided"], blank + 3.0 * (full - blank), rtol=1e-5, atol=1e-5)
    want = blank + 1.2 * (image - blank) + 3.0 * (full - image)
    np.testing.assert_allclose(found["three"], want, rtol=1e-5, atol=1e-5)
    c, u = jax.nn.log_softmax(full), jax.nn.log_softmax(blank)
    plausible = np.asarray(c >= np.sort(c)[:, -2:-1] + np.log(0.1))
    np.testing.assert_allclose(found["contrast"][plausible], (c - u)[plausible], rtol=1e-5)
    assert (found["contrast"][~plausible] == -np.inf).all() and 0 < plausible.sum() < 24


def test_barred_ids_are_no_words():
    barred = replace(V, barred=(13, 15))
    assert np.flatnonzero(word_ids(V) & ~word_ids(barred)).tolist() == [13, 15]
    assert not word_ids(V)[np.array([V.bos, V.masks[0], V.codes])].any()


def test_compressed_rows_hold_what_was_kept_and_count_anew():
    batch = rows([V.bos, 12, *PICTURE, 13])
    kept = compress(batch, np.asarray((batch.modality == IMAGE) | (batch.tokens == V.bos)))
    assert kept.tokens[0, :18].tolist() == [V.bos, *PICTURE[1:-1], V.pad]
    assert kept.position[0, :18].tolist() == [*range(17), 0]
    assert kept.segment[0].tolist() == [1] * 17 + [0] * 23


def test_streams_hold_pictures_or_nothing():
    prompt = rows(*MIXED)
    image = stream_of("image", prompt, ASKED.left > 0, V)
    blank = stream_of("blank", prompt, ASKED.left > 0, V)

    def held(batch):
        return [row[:n].tolist() for row, n in zip(batch.tokens, batch.segment.sum(1), strict=True)]

    begun = [V.bos, V.boi]
    assert held(image) == [begun, [V.bos], [V.bos, *PICTURE], [V.bos, *PICTURE, V.boi]]
    assert held(blank) == [begun, [V.bos], [V.bos], begun]
