"""Programs are compiled for few sizes and hold few rows; padding changes no result."""

from functools import partial

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import mmjax
from mmjax import run
from mmjax import trained as trained_module
from mmjax.batch import Batch, Vocabulary
from mmjax.models import language
from mmjax.sample import sizes
from mmjax.sample.decode import text_log_likelihood

COMPILED = "/jax/core/compile/backend_compile_duration"
SHORT, LONG = "man", "woman in a red coat swimming"
events: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))


def compilations(call, *args, **options) -> int:
    """How many programs a call compiles."""
    before = events.count(COMPILED)
    call(*args, **options)
    return events.count(COMPILED) - before


@pytest.fixture(scope="module")
def model(openmoji):
    """With random weights, those that start at zero among them."""
    made = run.prepare(tiny(openmoji), jax.devices()[:1])
    params = jax.jit(made.model.init)(jax.random.key(0))
    out = params["patch_out"]
    out["patch"] = 0.1 * jax.random.normal(jax.random.key(1), out["patch"].shape)
    return trained_module.Trained(made, params, 0)


def asked(*captions: str) -> list:
    return [[caption, mmjax.IMAGE] for caption in captions]


def test_of_each_kind_there_are_few_sizes():
    lengths = {sizes.length_of(n) for n in range(1, 4097)}
    assert len(lengths) == 12 and min(lengths) == 32 and {384, 768, 3072} < lengths
    assert all(sizes.length_of(n) >= n and not sizes.length_of(n) % 16 for n in range(1, 4097))
    assert {sizes.length_of(n, 48) for n in range(1, 49)} == {32, 48}
    assert {sizes.rows_of(n) for n in range(1, 257)} == set(sizes.ROWS)
    assert {sizes.rows_of(n, 6) for n in range(1, 65)} == {6, 12, 18, 36, 66}
    assert sizes.at_once(48, 8192) == 128 and sizes.at_once(1e9, 8192, 4) == 4


def test_numbers_of_a_call_are_no_part_of_its_programs(model):
    """Guidance, steps, shift, a longer prompt, more prompts up to a size, other seeds."""
    first = compilations(model.generate, asked(SHORT), steps=3, guidance=2.0)
    assert first > 0
    options = dict(steps=7, guidance=3.5, shift=2.0, guidance_start=0.2, guidance_least=0.5)
    assert compilations(model.generate, asked(LONG), 5, **options) == 0
    second = compilations(model.generate, asked(SHORT, LONG), **options)
    assert 0 < second <= first
    for captions in ((SHORT,) * 3, (LONG, SHORT, LONG, SHORT), (LONG,)):
        assert compilations(model.generate, asked(*captions), 2, **options) == 0
    # Without guidance there is one stream fewer, another solver steps otherwise: other programs.
    assert compilations(model.generate, asked(SHORT), steps=3, guidance=1.0) > 0


def test_choices_of_words_are_no_part_of_programs(model):
    options = dict(temperature=0.9, top_k=20, top_p=0.9, text=5)
    assert compilations(model.generate, [[SHORT]], **options) > 0
    options = dict(temperature=0.0, top_k=33, top_p=0.7, min_p=0.1, repetition=1.2, text=4)
    assert compilations(model.generate, [[LONG]], 3, **options) == 0


def test_scores_of_a_few_documents_are_one_program(model):
    documents = [[SHORT], [LONG], ["star"], ["sun"], ["moon"]]
    first = compilations(model.score, documents[:2])
    assert 0 < first < 8
    assert compilations(model.score, documents[:3]) == compilations(model.score, documents[:4]) == 0
    # Neighbours and padding leave every bit of a score as it is.
    np.testing.assert_array_equal(model.score(documents[:2]), model.score(documents[:4])[:2])
    np.testing.assert_allclose(model.score(documents[:1]), model.score(documents)[:1], rtol=1e-5)


def test_a_prompts_result_depends_on_its_seed_and_place_alone(model):
    options = dict(steps=3, guidance=2.0)
    three = model.generate(asked(SHORT, LONG, "star"), 4, **options)
    two, one = model.generate(asked(SHORT, "sun"), 4, **options), asked(SHORT)
    np.testing.assert_array_equal(three[0], two[0])
    alone = model.generate(one, 4, **options)[0].astype(int)
    assert np.abs(alone - three[0]).max() <= 1  # of another number of rows: up to rounding
    assert np.abs(three[0].astype(int) - three[1]).max() > 5


@pytest.mark.parametrize("name", ["score", "embed"])
def test_many_documents_are_read_a_few_at_a_time(model, name, monkeypatch):
    seen: list[Batch] = []

    def compiled(self, function, **static):
        def called(params, rows, *more):
            seen.append(rows)
            b, length = rows.tokens.shape
            return np.zeros((b, length) if name == "score" else (b, 4), np.float32)

        return called

    monkeypatch.setattr(trained_module.Trained, "compiled", compiled)
    monkeypatch.setattr(sizes, "POSITIONS", 2048)
    assert len(getattr(model, name)([[SHORT], [LONG]] * 300)) == 600
    assert len(seen) > 8 and all(rows.tokens.size <= 2048 for rows in seen)


def logits_at_once(parts, params, batch):
    """The log-likelihood as it was, with the logits of all positions."""
    hidden, _ = parts.run(
        params, parts.clean(params, batch), parts.mask(batch), batch.position, tower=batch.modality
    )
    logs = jax.nn.log_softmax(hidden @ parts.head(params), axis=-1)
    return jnp.take_along_axis(logs, batch.tokens[:, :, None], axis=-1)


def test_log_likelihoods_hold_no_logits_of_all_positions():
    e, _ = families.of("language")
    made = language.build(e.model, Vocabulary(16384), families.RULES)
    params = jax.eval_shape(made.init, jax.random.key(0))
    batch = families.batch_of(e, 64)

    def held(function) -> int:
        program = jax.jit(partial(function, made.parts)).lower(params, batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    whole = 4 * 64 * 48 * 16384
    assert held(text_log_likelihood) < 0.5 * whole < whole < held(logits_at_once)
