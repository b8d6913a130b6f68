"""A family of your own, outside of the package: the next word from a bag of the words before it.

    mmjax data build --src=openmoji --dst=out/data/openmoji
    mmjax train      --config=examples/bag_of_words.py --workdir=out/bag_of_words
    mmjax evaluate   --workdir=out/bag_of_words
    mmjax sample     --workdir=out/bag_of_words --prompt="man swimming"

Run from the directory above this one: `config.family` is this module's dotted path, which Python
must find. The logits of a position are `mean(table[words so far]) @ head + bias`; with a width of
0 nothing would be left but the bias, the frequencies of words. Images in the data are passed over.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from mmjax.batch import TEXT, Batch, Vocabulary, causal_mask
from mmjax.config import load
from mmjax.data import tokenizer as bpe
from mmjax.mesh import Rules, put
from mmjax.models.family import CHOICE, Abilities, Model
from mmjax.models.language import word_weight
from mmjax.models.tokens import token_terms
from mmjax.sample import prompt, sizes
from mmjax.sample.choose import allow, choose
from mmjax.sample_config import Choice


def get_config():
    """The experiment: the base's data, read by this family."""
    c = load(str(Path(__file__).parent.parent / "experiments" / "base.py"))
    c.family = "examples.bag_of_words"
    c.model = dict(width=64)
    c.steps = 300
    c.optim.kind = "adamw"  # there is no decoder whose matrices Muon could train
    c.sample.words = dict(temperature=1.0, top_k=20, top_p=1.0, min_p=0.0, repetition=1.0)
    return c


@dataclass(frozen=True)
class Config:
    """The family's configuration: `width` of the vectors of words, at least 1."""

    width: int


class Parts(NamedTuple):
    """What the sampler and the evaluations read."""

    config: Config
    vocabulary: Vocabulary


def bags(params, batch: Batch):
    """[b, l, d]: mean vector of the words of a document up to each position; 0 where none is."""
    word = (batch.modality == TEXT) & (batch.segment > 0)
    seen = (causal_mask(batch) & word[:, None, :]).astype(jnp.float32)
    seen = seen / jnp.maximum(seen.sum(-1, keepdims=True), 1.0)
    return seen @ jnp.take(params["table"], batch.tokens, axis=0)


def with_bias(params, bag):
    """Bags and head with one more column, so that their product has the bias in it."""
    ones = jnp.ones((*bag.shape[:-1], 1))
    return jnp.concatenate([bag, ones], -1), jnp.concatenate([params["head"], params["bias"]])


def loss(parts: Parts, params, batch: Batch, keys):
    """Mean next-token loss; `keys`, one a row, would drive noise or dropout."""
    bag, head = with_bias(params, bags(params, batch))
    weight = word_weight(batch, parts.vocabulary)[..., None]
    return token_terms("text", ("text",), bag, head, batch, weight, 0.0)


def log_likelihood(parts: Parts, params, batch: Batch, opens=True):
    """[b, l] f32: log p of each token given those before it, 0 at the first; no image may begin."""
    bag, head = with_bias(params, bags(params, batch)[:, :-1])
    logs = jax.nn.log_softmax(bag @ head, axis=-1)
    return jnp.pad(
        jnp.take_along_axis(logs, batch.tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0))
    )


def write(parts: Parts, params, batch: Batch, keys, count: int, choice: Choice):
    """[b, count] int32: tokens drawn one after the other; what follows EOS means nothing."""
    v = parts.vocabulary
    words = jnp.arange(v.size)
    allowed = ~jnp.isin(words, jnp.array([i for i in v.sentinels if i != v.eos]))[None]
    held = ((batch.modality == TEXT) & (batch.segment > 0)).astype(jnp.float32)
    total = jnp.einsum("bl,bld->bd", held, jnp.take(params["table"], batch.tokens, axis=0))

    def one(state, number):
        total, n = state
        bag, head = with_bias(params, total / n)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        token = choose(allow(bag @ head, allowed), choice, own)
        return (total + params["table"][token], n + 1.0), token

    start = total, jnp.maximum(held.sum(1, keepdims=True), 1.0)
    return jax.lax.scan(one, start, jnp.arange(count))[1].T


def generate(run, params, compiled, requests, wish, sample, keys, stream=None) -> list[list[str]]:
    """Continues every request by at most `wish.text` tokens; -> for each its one text."""
    v = run.model.parts.vocabulary
    documents = [request.document for request in requests]
    rows = prompt.lay_out(documents, run.experiment.data, run.tokenizer, v, draw=False)
    rows = sizes.padded(rows, sizes.rows_of(len(requests), run.rules.split("batch")))
    keys = keys[np.minimum(np.arange(len(rows.tokens)), len(requests) - 1)]
    run_all = compiled(write, count=wish.text, choice=sample.words)
    tokens = np.asarray(run_all(params, put(rows, run.rules), keys))[: len(requests)]
    ends = [row.tolist().index(v.eos) if v.eos in row else len(row) for row in tokens]
    return [
        [bpe.decode(run.tokenizer, row[:end].tolist())]
        for row, end in zip(tokens, ends, strict=True)
    ]


def abilities(c: Config) -> Abilities:
    """What a trained one can do."""
    return Abilities(
        generate=generate,
        options=CHOICE,
        log_likelihood=log_likelihood,
        evals=("likelihood", "passages"),
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model`; its few weights lie whole on every device."""
    parts = Parts(c, vocabulary)

    def init(key):
        table = jax.random.normal(key, (vocabulary.size, c.width)) * 0.1
        head = jnp.zeros((c.width, vocabulary.size))
        return {"table": table, "head": head, "bias": jnp.zeros((1, vocabulary.size))}

    return Model(
        init=init,
        specs={"table": P(None, None), "head": P(None, None), "bias": P(None, None)},
        loss=partial(loss, parts),
        flops=lambda batch: 2.0 * float((batch.segment > 0).sum()) * c.width * vocabulary.size,
        weights={"text": 1.0},
        parts=parts,
    )
