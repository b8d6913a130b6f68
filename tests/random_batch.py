"""Random packed layouts for property tests, written position by position."""

import numpy as np

from mmjax.batch import IMAGE, TEXT, Batch, Vocabulary

VOCABULARY = Vocabulary(32)


def random_batch(seed: int, rows=2, length=24, slots=3, patches=4, size=4) -> Batch:
    """Documents of random text and pictures, first-fit into rows; padding behind them."""
    rng = np.random.default_rng(seed)
    v = VOCABULARY
    fields = {k: np.zeros((rows, length), np.int32) for k in Batch._fields[:5]}
    weight = np.zeros((rows, length), np.float32)
    pixels = rng.integers(0, 256, (rows, slots, size, size, 3)).astype(np.uint8)
    for r in range(rows):
        at, segment, slot = 0, 0, 0
        while at < length - 2:
            segment += 1
            document = [(v.bos, TEXT, 0)]
            for _ in range(rng.integers(1, 4)):
                if rng.random() < 0.5 and slot < slots:
                    slot += 1
                    document += [(v.boi, TEXT, 0)]
                    document += [(v.pad, IMAGE, slot)] * patches
                    document += [(v.eoi, TEXT, 0)]
                else:
                    document += [(int(t), TEXT, 0) for t in rng.integers(5, v.size, 3)]
            document += [(v.eos, TEXT, 0)]
            if at + len(document) > length:
                used = fields["image"][r].max()
                pixels[r, used:] = 0
                break
            for position, (token, modality, image) in enumerate(document):
                fields["tokens"][r, at] = token
                fields["modality"][r, at] = modality
                fields["image"][r, at] = image
                fields["segment"][r, at] = segment
                fields["position"][r, at] = position
                weight[r, at] = float(position > 0)
                at += 1
        pixels[r, fields["image"][r].max() :] = 0
    return Batch(**fields, weight=weight, pixels=pixels)
