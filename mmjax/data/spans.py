"""Causal masking (CM3): spans of a document move to its end, where they are written knowing it all.

`BOS a b c EOS` becomes `BOS a <mask:0> c <mask:0> b <eoss> EOS`. A piece is what
`mmjax.data.tokenizer.lay_out` makes, with "pictures", one an image slot, if it has any yet.
"""

import numpy as np

from mmjax.batch import IMAGE, TEXT, Vocabulary
from mmjax.data.pack import Piece
from mmjax.error import UserError

Span = tuple[int, int]  # first position, and the one behind the last


def move_spans(
    piece: Piece,
    rng: np.random.Generator,
    vocab: Vocabulary,
    spans: float,
    fixed: bool = False,
    length: int | None = None,
) -> Piece:
    """A piece with spans drawn and moved; it grows by three positions a span.

    Args:
        piece: of a document. rng: decides. vocab: has the sentinels.
        spans: mean of the Poisson distribution that their number is drawn from (1 in CM3).
        fixed: the number is `spans` itself.
        length: of a row: a piece that fits gets no more spans than fit with it.

    In either case there is one fewer than `vocab.masks` at most, as in CM3's code. There may be
    fewer than asked for, none too, where those drawn overlap.

    Raises:
        UserError: if `spans` is negative.
    """
    if spans < 0:
        raise UserError(f"data.spans={spans} is negative; give the mean number of spans, or 0")
    count = int(spans) if fixed else int(rng.poisson(spans))
    most = max(len(vocab.masks) - 1, 0)
    if length is not None:
        most = min(most, max(length - len(piece["tokens"]), 0) // 3)
    return move(piece, draw(piece, rng, vocab, min(count, most)), vocab)


def draw(piece: Piece, rng: np.random.Generator, vocab: Vocabulary, count: int) -> list[Span]:
    """At most `count` spans that do not overlap, in order.

    As in CM3's code, `count` squared candidates with ends uniform over the document are gone
    through, and each is taken if it overlaps none taken before. CM3Leon's rule comes first: a
    candidate shrinks to the part in that text or picture which it covers most of, and a picture,
    its sentinels too, is taken whole. BOS and EOS never move.
    """
    borders = _borders(piece, vocab)
    first, length = int(borders[0]), int(borders[-1] - borders[0])
    taken: list[Span] = []
    for low, high in np.sort(rng.random((count**2, 2))).tolist():
        raw = (first + int(low * length), first + int(high * length + 0.5))
        begin, end = _within(raw, borders, piece)
        if begin < end and all(end <= b or e <= begin for b, e in taken):
            taken.append((begin, end))
        if len(taken) == count:
            break
    return sorted(taken)


def move(piece: Piece, spans: list[Span], vocab: Vocabulary) -> Piece:
    """Leaves `<mask:i>` where span i was, writes `<mask:i> span <eoss>` before EOS.

    All that was trained on still is, and a span's three sentinels with it; they have the largest
    weight within the span, so those of a prompt that is only read are only read. Positions count
    on from left to right, and picture slots are numbered anew in order of appearance.

    Args:
        piece: of a document. vocab: has the sentinels.
        spans: in order, at most as many as `vocab.masks`, not overlapping.
    """
    if not spans:
        return piece
    total, n = len(piece["tokens"]), len(spans)
    # Columns: the document's, then n masks, then n times <eoss>.
    weights = [piece["weight"][begin:end].max() for begin, end in spans]
    ids = [*vocab.masks[:n], *[vocab.eoss] * n]
    added = {"tokens": ids, "modality": TEXT, "image": 0, "position": 1, "weight": weights * 2}
    columns = {**piece, "position": _steps(piece["position"])}
    for name, value in added.items():
        more = np.broadcast_to(np.asarray(value, columns[name].dtype), 2 * n)
        columns[name] = np.concatenate([columns[name], more])
    source, targets, at = [], [], 0
    for i, (begin, end) in enumerate(spans):
        source += [*range(at, begin), total + i]
        targets += [total + i, *range(begin, end), total + n + i]
        at = end
    end = int(_borders(piece, vocab)[-1])
    index = [*source, *range(at, end), *targets, *range(end, total)]
    return _take(columns, np.array(index), piece["position"][0])


def invert(piece: Piece, vocab: Vocabulary) -> Piece:
    """What `move` was given.

    Raises:
        ValueError: if some sentinel lacks its pair.
    """
    tokens, text = piece["tokens"], piece["modality"] == TEXT
    at = np.flatnonzero(text & np.isin(tokens, vocab.masks))
    if len(at) == 0:
        return piece
    n, end = len(at) // 2, int(_borders(piece, vocab)[-1])
    holes, starts = at[:n], at[-n:]
    ends = [*(starts[1:] - 1), end - 1]
    paired = np.array_equal(tokens[at], [*vocab.masks[:n]] * 2)
    if not paired or np.any(tokens[ends] != vocab.eoss):
        raise ValueError(f"sentinels of moved spans do not pair up: {tokens[at].tolist()}")
    index, last = [], 0
    for hole, start, stop in zip(holes, starts, ends, strict=True):
        index += [*range(last, hole), *range(start + 1, stop)]
        last = hole + 1
    index += [*range(last, starts[0]), *range(end, len(tokens))]
    columns = {**piece, "position": _steps(piece["position"])}
    return _take(columns, np.array(index), piece["position"][0])


def _borders(piece: Piece, vocab: Vocabulary) -> np.ndarray:
    """Where the first text or picture begins, each other, and what follows them (EOS, if any).

    A picture is its patches with BOI and EOI; two pictures in a row are apart.
    """
    image, tokens = piece["image"], piece["tokens"]
    last = len(tokens) - int(len(tokens) > 1 and tokens[-1] == vocab.eos)
    change = np.flatnonzero(np.diff(image))
    boi, eoi = change[image[change + 1] > 0], change[image[change] > 0] + 1
    return np.unique([1, *boi, *(eoi + 1), last])


def _within(raw: Span, borders: np.ndarray, piece: Piece) -> Span:
    """A candidate -> the part of it in the text or picture it covers most of; may be empty."""
    begins, ends = borders[:-1], borders[1:]
    covered = np.minimum(ends, raw[1]) - np.maximum(begins, raw[0])
    if len(covered) == 0 or covered.max() <= 0:
        return raw[0], raw[0]
    most = int(covered.argmax())
    begin, end = int(begins[most]), int(ends[most])
    if np.any(piece["modality"][begin:end] == IMAGE):
        return begin, end
    return max(begin, raw[0]), min(end, raw[1])


def _steps(position: np.ndarray) -> np.ndarray:
    """How far each position lies behind the one before it: 0 where patches share one, else 1."""
    return np.diff(position, prepend=position[0])


def _take(columns: Piece, index: np.ndarray, start: int) -> Piece:
    """Columns by index, "position" holding steps; then positions and slots are counted anew."""
    names = ("tokens", "modality", "image", "position", "weight")
    piece = {**columns, **{name: columns[name][index] for name in names}}
    piece["position"] = (start + np.cumsum(piece["position"])).astype(columns["position"].dtype)
    slots, first = np.unique(piece["image"], return_index=True)
    order = slots[np.argsort(first)]
    order = order[order > 0]
    rank = np.zeros(order.max(initial=0) + 1, piece["image"].dtype)
    rank[order] = np.arange(1, len(order) + 1)
    piece["image"] = rank[piece["image"]]
    if "pictures" in piece:
        piece["pictures"] = [columns["pictures"][slot - 1] for slot in order]
    return piece
