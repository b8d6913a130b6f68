"""Prefill and scores against the model run whole."""

from functools import partial

import jax
import numpy as np
from random_batch import VOCABULARY
from small import make, transfusion_config

from mmjax.batch import IMAGE, TEXT, Batch, mixed_mask
from mmjax.models import denoise as noisy_pass
from mmjax.sample import decode

MODEL, PARAMS = make(transfusion_config())
PARTS = MODEL.parts
V = VOCABULARY


def row(tokens, image=(), length=16) -> Batch:
    """One document of token ids; -1 stands for a patch of the picture."""
    n = len(tokens)
    fields = {k: np.zeros((1, length), np.int32) for k in Batch._fields[:5]}
    for i, t in enumerate(tokens):
        fields["tokens"][0, i] = max(t, 0)
        fields["modality"][0, i] = IMAGE if t < 0 else TEXT
        fields["image"][0, i] = int(t < 0)
    fields["segment"][0, :n] = 1
    patch = np.array([t < 0 for t in tokens])
    fields["position"][0, :n] = np.cumsum(~(patch & np.roll(patch, 1))) - 1
    pixels = np.zeros((1, 1, 4, 4, 3), np.uint8)
    if len(image):
        pixels[0, 0] = image
    weight = np.ones((1, length), np.float32)
    return Batch(**fields, weight=weight, pixels=pixels)


def rows(*parts) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


PICTURE = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
CAPTION = [V.bos, V.boi, -1, -1, -1, -1, V.eoi]
PROMPTS = rows(row(CAPTION, PICTURE), row([V.bos, 7, 8]))


@jax.jit
def all_logits(batch):
    x = noisy_pass.clean_inputs(PARTS, PARAMS, batch)
    hidden, _ = PARTS.run(PARAMS, x, mixed_mask(batch), batch.position)
    return decode.logits_of(PARTS, PARAMS, hidden)


def whole_logits(tokens, image=()):
    """Logits behind the last token, from one forward pass over everything."""
    return np.array(all_logits(row(tokens, image, 32)))[0, len(tokens) - 1]


def test_prefill_equals_the_whole_forward_pass():
    filled = jax.jit(partial(decode.prefill, PARTS, room=4))(PARAMS, PROMPTS)
    got = np.asarray(decode.logits_of(PARTS, PARAMS, filled.last))
    np.testing.assert_allclose(got[0], whole_logits(CAPTION, PICTURE), atol=1e-5)
    np.testing.assert_allclose(got[1], whole_logits([V.bos, 7, 8]), atol=1e-5)
    assert np.abs(got[0] - whole_logits(CAPTION, 255 - PICTURE)).max() > 1e-3
    np.testing.assert_array_equal(filled.length, [7, 3])


def test_log_likelihood_is_that_of_the_logits():
    tokens = [V.bos, 7, 8, 9, V.eos]
    logs = np.asarray(jax.jit(partial(decode.text_log_likelihood, PARTS))(PARAMS, row(tokens)))[0]
    for i in range(1, len(tokens)):
        want = jax.nn.log_softmax(whole_logits(tokens[:i]))[tokens[i]]
        np.testing.assert_allclose(logs[i], want, atol=1e-5)
    assert logs[0] == 0


def test_word_weight_leaves_out_sentinels_but_not_the_end():
    weight = np.asarray(decode.word_weight(row([V.bos, V.boi, -1, V.eoi, 9, V.eos]), V))[0]
    assert weight[:7].tolist() == [1.0 * w for w in (0, 0, 0, 0, 1, 1, 0)]
