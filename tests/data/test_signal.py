"""The mean and deviation that models divide by: what they see then has mean 0 and deviation 1."""

import re

import numpy as np
import pytest

from mmjax.batch import Coded, Image, Text
from mmjax.data import build, pipeline, signal, write
from mmjax.data.pixels import decode_image
from mmjax.data.record import Item, Record
from mmjax.error import UserError
from mmjax.models.signal import of_pixels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("signal") / "set"
    build.build("scenes", path, options={"count": 60, "size": 24})
    return path


class Standard:
    def __init__(self, found):
        self.signal_mean, self.signal_std = found.mean, found.std


def test_what_a_model_makes_of_pixels_is_standardised(scenes):
    found = signal.measure(scenes, 16)
    records = pipeline.open_split(scenes, "train")
    pixels = [decode_image(records[i].images[0], 16, "pil_box") for i in range(len(records))]
    seen = np.asarray(of_pixels(Standard(found), None, {}, np.stack(pixels)[:, None]))
    assert abs(seen.mean()) < 1e-4 and abs(seen.std() - 1) < 1e-4
    assert (found.images, found.latents) == (len(records), False) and abs(found.mean) > 0.05
    other = signal.measure(scenes, 16, "nearest")
    assert other.std != found.std  # how images are brought to their size is part of it
    assert re.fullmatch(
        rf"model.signal_mean={found.mean:.4f} model.signal_std=0\.\d+ \(of {len(records)} images\)",
        found.line(),
    )


def coded(path, dtype):
    rng = np.random.default_rng(0)
    parts = [(3 + 2 * rng.normal(size=(4, 4, 2))).astype(dtype) for _ in range(20)]
    images = [Image(b"", coded=Coded(x.tobytes(), dtype, x.shape))
              for x in parts]  # fmt: skip
    records = [Record(f"{n}", (Text(f"{n}"), image)) for n, image in enumerate(images)]
    write.write([Item(r.id, lambda r=r: r) for r in records], path, {}, {})
    return np.stack(parts)


def test_what_it_makes_of_latents_too(tmp_path):
    latents = coded(tmp_path / "set", "float16")
    found = signal.measure(tmp_path / "set")
    assert found.latents and found.images == 20
    seen = (latents.astype(np.float32) - found.mean) / found.std
    assert abs(seen.mean()) < 1e-4 and abs(seen.std() - 1) < 1e-4
    np.testing.assert_allclose((found.mean, found.std), (3, 2), atol=0.2)


def test_what_has_no_signal_is_named(scenes, tmp_path):
    coded(tmp_path / "codes", "int32")
    with pytest.raises(UserError, match="holds codes, which are not denoised"):
        signal.measure(tmp_path / "codes")
    with pytest.raises(UserError, match=r"--size is missing; give data.image"):
        signal.measure(scenes)
    texts = [Item("a", lambda: Record("a", (Text("a"),)))]
    write.write(texts, tmp_path / "text", {}, {})
    assert signal.measure(tmp_path / "text") is None
