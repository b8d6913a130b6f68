"""Packing and reading, against what one would write instead.

    python benchmarks/data.py --data=out/data/openmoji                 (ours and a plain loop)
    python benchmarks/data.py --data=out/data/openmoji --torch=PYTHON  (also torch's DataLoader)
    python benchmarks/data.py --data=out/data/openmoji --rounds=1 --stretch=2    (that it runs)

Reading: records of the data set -> caption tokens, a decoded and resized picture -> packed rows of
128 positions and 6 pictures in batches of 64. The plain loop does the same work one document after
another in one process; the DataLoader does it in 2 workers and packs as it collates. Each peer is a
process group of its own; they take turns, a stretch of batches each, A B C C B A ..., and the
others are stopped meanwhile, or their workers would read ahead for nothing.

Packing: laid-out documents in memory -> rows, ours against grain's FirstFitPackIterDataset.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np

LENGTH, IMAGES, SIZE, PATCH, BATCH, WINDOW = 128, 6, 16, 4, 64, 512


def config(data: str, workers: int):
    """What is read."""
    from mmjax.config import DataConfig, SourceConfig

    return DataConfig(
        sources={"data": SourceConfig(data, 1.0, "", False)}, stages={}, tokenizer="",
        length=LENGTH, images=IMAGES, image=SIZE, patch=PATCH, text_first=0.8,
        caption_dropout=0.0, shared_position=True, resize="pil_box", spans=0.0,
        bottleneck="none", shrink=2, coded=False, window=WINDOW, workers=workers,
    )  # fmt: skip


def ours(data: str, workers: int):
    """Batches of mmjax."""
    from mmjax.data import pipeline

    c = config(data, workers)
    yield from pipeline.train_batches(c, pipeline.tokenizer_of(c), BATCH, 1000, 0)


class Documents:
    """Records of a data set, tokenized and decoded one at a time, in a fixed random order."""

    def __init__(self, data: str):
        from mmjax.batch import Vocabulary
        from mmjax.data import pipeline

        self.c = config(data, 0)
        self.tokenizer = pipeline.tokenizer_of(self.c)
        self.records = pipeline.open_split(data, "train")
        self.order = np.random.default_rng(0).permutation(len(self.records))
        self.pad = Vocabulary(0)

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int):
        """(tokens, pixels) of one document."""
        from mmjax.data import tokenizer as bpe
        from mmjax.data.pixels import decode_image

        record = self.records[int(self.order[number % len(self.order)])]
        v = bpe.vocabulary(self.tokenizer)
        ids = bpe.encode(self.tokenizer, record.caption)
        picture = [v.boi] + [v.pad] * self.c.patches + [v.eoi]
        pixels = decode_image(record.images[0], SIZE, "pil_box")
        return np.array([v.bos, *ids, *picture, v.eos], np.int32), pixels


def by_hand(documents):
    """Documents -> batches: first fit into open rows, written as one would by hand.

    It writes three of a Batch's seven fields.
    """
    documents = iter(documents)
    while True:
        rows: list[list] = []
        while len(rows) <= BATCH:
            tokens, pixels = next(documents)
            for row in rows:
                if sum(len(t) for t, _ in row) + len(tokens) <= LENGTH and len(row) < IMAGES:
                    row.append((tokens, pixels))
                    break
            else:
                rows.append([(tokens, pixels)])
        flat = {n: np.zeros((BATCH, LENGTH), np.int32) for n in ("tokens", "segment", "position")}
        pictures = np.zeros((BATCH, IMAGES, SIZE, SIZE, 3), np.uint8)
        for r, row in enumerate(rows[:BATCH]):
            at = 0
            for number, (tokens, pixels) in enumerate(row):
                span = slice(at, at + len(tokens))
                flat["tokens"][r, span], flat["segment"][r, span] = tokens, number + 1
                flat["position"][r, span] = np.arange(len(tokens))
                pictures[r, number] = pixels
                at += len(tokens)
        yield flat["segment"], pictures


def plain(data: str):
    """One process, one document after another."""
    documents = Documents(data)
    return by_hand(documents[n] for n in range(len(documents)))


def torch_loader(data: str):
    """torch's DataLoader with two workers over the same documents."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Documents(data), batch_size=64, num_workers=2, collate_fn=list, prefetch_factor=4
    )
    return by_hand(pair for part in loader for pair in part)


def segments(batch) -> np.ndarray:
    """[b, l] of either kind of batch."""
    return batch.segment if hasattr(batch, "segment") else batch[0]


def worker(name: str, data: str, stretch: int) -> None:
    """Warms up, then reads a stretch a line of input; answers seconds, documents, tokens, bytes."""
    peers = {
        "mmjax": lambda: ours(data, 0),
        "mmjax2": lambda: ours(data, 2),
        "plain": lambda: plain(data),
        "torch": lambda: torch_loader(data),
    }
    batches = iter(peers[name]())
    for _ in range(2 * stretch):
        next(batches)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        got = [next(batches) for _ in range(stretch)]
        seconds = time.perf_counter() - start
        found = [segments(b) for b in got]
        documents = sum(int(s.max(1).sum()) for s in found)
        tokens = sum(int((s > 0).sum()) for s in found)
        size = sum(sum(np.asarray(x).nbytes for x in b) for b in got)
        print(seconds, documents, tokens, size, flush=True)


def launch(name: str, python: str, data: str, stretch: int) -> subprocess.Popen:
    """A peer in a process of its own, warmed up."""
    process = subprocess.Popen(
        [python, __file__, f"--worker={name}", f"--data={data}", f"--stretch={stretch}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline().strip() == "ready", f"{name} did not start"
    os.killpg(process.pid, signal.SIGSTOP)
    return process


def turn(process: subprocess.Popen) -> list[float]:
    """Seconds, documents, tokens, bytes of one stretch."""
    os.killpg(process.pid, signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    os.killpg(process.pid, signal.SIGSTOP)
    return [float(x) for x in answer.split()]


def reading(data: str, torch: str, rounds: int, stretch: int) -> None:
    """Prints the table of reading."""
    peers = {
        "plain loop": ("plain", sys.executable),
        "mmjax, 1 thread": ("mmjax", sys.executable),
        "mmjax, 2 workers": ("mmjax2", sys.executable),
    }
    if torch:
        peers["torch DataLoader, 2 workers"] = ("torch", torch)
    running = {label: launch(*peer, data, stretch) for label, peer in peers.items()}
    found: dict[str, list] = {label: [] for label in running}
    for r in range(rounds):
        for label in list(running)[:: 1 if r % 2 == 0 else -1]:
            found[label].append(turn(running[label]))
    for process in running.values():
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    rate = {label: np.array(v)[:, 1] / np.array(v)[:, 0] for label, v in found.items()}
    print(f"{'':28s} {'documents/s':>12s} {'tokens/s':>10s} {'MB/s':>6s} {'fill':>5s}  to plain")
    for label, values in found.items():
        seconds, _, tokens, size = np.array(values).T
        fill = tokens.sum() / (len(values) * stretch * BATCH * LENGTH)
        ratio = rate[label] / rate["plain loop"]
        low, high = np.quantile(ratio, [0.1, 0.9])
        print(
            f"{label:28s} {np.median(rate[label]):12,.0f} {np.median(tokens / seconds):10,.0f} "
            f"{np.median(size / seconds) / 1e6:6.1f} {fill:5.3f}  {np.median(ratio):.2f} "
            f"[{low:.2f}, {high:.2f}]"
        )


def laid_out(count: int) -> list[dict]:
    """Captions of 4 to 60 positions, four in five with a picture of 66, in memory."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(count):
        n = 66 * (rng.random() < 0.8) + int(rng.integers(4, 61))
        fields = {k: np.ones(n, np.int32) for k in ("tokens", "modality", "image", "position")}
        pieces.append(fields | {"weight": np.ones(n, np.float32), "pictures": [b""]})
    return pieces


def packing(rounds: int, stretch: int) -> None:
    """Prints the table of packing, in alternation within one process."""
    import grain

    from mmjax.data.pack import BatchIterDataset, Place, Shape, join

    count, length = 8192, 256
    pieces = laid_out(count)
    names = ("tokens", "modality", "image", "position", "weight")
    bare = [{k: p[k] for k in names} for p in pieces]
    shape = Shape(length, 4, 1)

    def mine():
        read = lambda numbers: [pieces[n % count] for n in numbers]  # noqa: E731
        build = lambda rows: partial(join, rows, shape, 0)  # noqa: E731
        streams = [(0, lambda: read)]
        return iter(BatchIterDataset(streams, 512, shape, build, 64, slice(0, 64), 0, Place()))

    def grains():
        source = grain.MapDataset.source(bare).repeat().to_iter_dataset()
        packed = grain.experimental.FirstFitPackIterDataset(
            source, length_struct=dict.fromkeys(names, length), num_packing_bins=64
        )
        return iter(packed.batch(64))

    running = {"mmjax": mine(), "grain FirstFitPackIterDataset": grains()}
    speed: dict[str, list[float]] = {name: [] for name in running}
    fill: dict[str, list[float]] = {name: [] for name in running}
    for r in range(rounds + 1):
        for name, batches in running.items():
            steps = 2 * stretch if name == "mmjax" else -(-stretch // 6)
            start = time.perf_counter()
            got = [next(batches) for _ in range(steps)]
            seconds = time.perf_counter() - start
            held = [b[1].segment if name == "mmjax" else b["tokens_segment_ids"] for b in got]
            tokens = sum(int((s > 0).sum()) for s in held)
            if r:
                speed[name].append(tokens / seconds)
                fill[name].append(tokens / (steps * 64 * length))
    print(f"\n{'':32s} {'million tokens/s':>16s} {'10 % ... 90 %':>16s} {'fill':>6s}")
    for name, values in speed.items():
        low, high = np.quantile(values, [0.1, 0.9]) / 1e6
        print(
            f"{name:32s} {np.median(values) / 1e6:16.2f} {low:7.2f} ... {high:.2f} "
            f"{np.mean(fill[name]):6.3f}"
        )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="directory of a captioned data set")
    parser.add_argument("--worker")
    parser.add_argument("--torch", default="", help="a Python that has mmjax and torch")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--stretch", type=int, default=30, help="batches a turn")
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.data, args.stretch)
        return
    reading(args.data, args.torch, args.rounds, args.stretch)
    packing(args.rounds, args.stretch)


if __name__ == "__main__":
    main()
