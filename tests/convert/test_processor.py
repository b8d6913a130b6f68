"""Pictures against those of Hugging Face's image processors, and what their files may say.

tests/golden/hf_pixels.json is what `transformers` 5.24 makes on Pillow of seeded pictures of odd
sizes; see make_pixels.py. The `hf` tests hold both beside each other anew.
"""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from make_pixels import CASES, PLACE, SIZES, digest, picture, places
from tiny import ROOT

from mmjax import config, run
from mmjax.codecs import autoencoder
from mmjax.convert import hub, processor
from mmjax.data import steps
from mmjax.data.pixels import decode_image
from mmjax.data.resize import RESIZE
from mmjax.error import UserError
from mmjax.layers.patch import to_signal
from mmjax.layers.vision import standard

GOLDEN = json.loads(PLACE.read_text())


def read(case: str) -> processor.Pixels:
    kind, side, said = CASES[case]
    return processor.pixels(json.loads(json.dumps(said)), kind, side, "file")


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_theirs(case):
    """Every byte of every size, and the numbers that a model is given."""
    found, side = read(case), CASES[case][1]
    for size in SIZES:
        made = steps.to_size(picture(*size), side, found.resize)
        wanted, *numbers = GOLDEN[f"{case} {size[0]}x{size[1]}"]
        assert digest(made) == wanted, size
        signal = np.asarray(standard(made[None], found.mean, found.std)[0])
        np.testing.assert_allclose(
            signal.ravel()[places(signal.shape)], numbers, rtol=2e-6, atol=2e-6 * abs(signal).max()
        )


def test_a_box_that_is_no_whole_number_of_pixels_is_seen():
    """What stood in for theirs: a difference that the goldens do not let pass."""
    pixels = picture(427, 640)
    mine = RESIZE["pil_bicubic_aa"](pixels, 224)
    theirs = steps.to_size(pixels, 224, read("clip").resize)
    off = np.abs(mine.astype(int) - theirs)
    assert off.max() > 5 and digest(mine) != GOLDEN["clip 427x640"][0]


def test_what_is_chosen_reaches_the_loader(tmp_path):
    """By `decode_image`, of an encoded picture, as training and prompts read it."""
    PIL.Image.fromarray(picture(427, 640)).save(tmp_path / "a.png")
    made = decode_image((tmp_path / "a.png").read_bytes(), 336, read("llava").resize)
    assert digest(made) == GOLDEN["llava 427x640"][0] != GOLDEN["llava_pad 427x640"][0]


def test_a_codec_reads_as_it_is_told():
    """Chameleon's processor multiplies by 0.0078; the codec's own scale is 1 / 127.5."""
    e = config.resolve(
        config.load(str(ROOT / "experiments" / "small_chameleon.py")), run.families()
    )
    seen = processor.pixels({}, "chameleon", e.model.image, "file")
    told = processor.standardised(e.model, seen)
    pixels = jnp.arange(256, dtype=jnp.uint8)[None, :, None, None].repeat(3, -1)
    found = np.asarray(autoencoder.signal(told.codec, pixels))[0, :, 0, 0]
    np.testing.assert_allclose(found, np.arange(256) * 0.0078 - 1, atol=1e-6)
    own = autoencoder.signal(e.model.codec, pixels)
    assert np.array_equal(own, to_signal(pixels)) and abs(own[0, -1] - found[-1]).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "said", "words"),
    [
        ("clip", {"image_std": 0}, "image_std=0, by which is divided"),
        ("clip", {"image_std": [0.2, 0.0, 0.2]}, "image_std=.*, by which is divided"),
        ("clip", {"image_std": [0.2, -0.2, 0.2]}, "image_std=.*, by which is divided"),
        ("clip", {"image_mean": [0.5]}, r"image_mean=\[0.5\], which must be three finite numbers"),
        ("clip", {"image_mean": [0.5] * 4}, "image_mean=.*, which must be three finite numbers"),
        ("clip", {"image_mean": ["0.5"] * 3}, "image_mean=.*, which must be three finite"),
        ("clip", {"image_mean": [True] * 3}, "image_mean=.*, which must be three finite"),
        ("clip", {"image_mean": [float("nan")] * 3}, "image_mean=.*, which must be three finite"),
        ("clip", {"image_std": [float("inf")] * 3}, "image_std=.*, which must be three finite"),
        ("clip", {"rescale_factor": 0}, "rescale_factor=0, which must be a number above 0"),
        ("clip", {"rescale_factor": "1/255"}, "rescale_factor='1/255', which must be a number"),
        ("clip", {"resample": 6}, "resample=6, which must be a number from 0 to 5"),
        ("clip", {"resample": True}, "resample=True, which must be"),
        ("clip", {"resample": "bicubic"}, "resample='bicubic', which must be"),
        ("clip", {"do_resize": "yes"}, "do_resize='yes', which must be true or false"),
        ("clip", {"size": 256, "do_center_crop": False}, "size=256, by which .* its own"),
        ("clip", {"size": 256, "crop_size": 256}, "crop_size=256, by which .* 256 x 256; the mo"),
        ("clip", {"crop_size": {"height": 224, "width": 200}}, "crop_size=.* 224 x 200; the mod"),
        ("clip", {"crop_size": {"shortest_edge": 224}}, "crop_size=.*, which must be a side"),
        ("clip", {"size": {"longest_edge": 224}}, "size=.*, which is not done here; give short"),
        ("clip", {"size": {"shortest_edge": 224, "longest_edge": 300}}, "size=.*not done here"),
        ("clip", {"size": {"max_height": 224, "max_width": 3}}, "size=.*, which is not done here"),
        ("clip", {"size": {"height": 224.0, "width": 224}}, "size=.*, which must be whole numbers"),
        ("clip", {"size": 0}, "size=0, which must be whole numbers"),
        ("clip", {"size": -4}, "size=-4, which must be whole numbers"),
        ("clip", {"size": "224"}, "size='224', which must be whole numbers"),
        ("clip", {"size": [224, 224, 3]}, "size=.*, which is not done here"),
        ("clip", {"size": {}}, "size={}, which is not done here"),
        ("clip", {"do_resize": False, "do_center_crop": False}, "do_resize=False, by which .* its"),
        ("clip", {"do_pad": True}, "do_pad=True, which no CLIPImageProcessor does"),
        ("clip", {"image_size": 224}, "image_size=224, which a CLIPImageProcessor does not read"),
        ("clip", {"crop_pct": 0.9}, "crop_pct=0.9, which is not done here; have: do_resize"),
        ("clip", {"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad', which is not done here"),
        ("clip", {"use_square_size": True}, "use_square_size=True, which is not done here"),
        ("clip", {"image_processor_type": "BlipImageProcessor"}, "'BlipImageProcessor', which is"),
        ("clip", {"image_processor_type": 7}, "image_processor_type=7, which is not known here"),
        ("llava", {"do_pad": True, "image_mean": 1.5}, "image_mean=1.5, of which do_pad=true"),
        ("idefics", {"image_num_channels": 1}, "image_num_channels=1, but pictures have 3"),
        ("idefics", {"image_size": 200}, "image_size=200, by which .* 200 x 200; the model"),
    ],
)
def test_what_is_not_done_is_refused_by_name(kind, said, words):
    with pytest.raises(UserError, match=f"^file has .*{words}") as error:
        processor.pixels(said, kind, 224, "file")
    assert "\n" not in str(error.value)


def test_every_field_of_every_type_is_read_or_refused():
    """No value that JSON can hold makes anything but a line."""
    names = [*processor.PLAIN, *processor.SIZES, *processor.IGNORED, "image_num_channels", "other"]
    strange = [None, True, False, -1, 0, 3, 10**400, 1.5, float("nan"), float("inf"), "", "1e-5"]
    strange += [[], [1], [[1]] * 3, ["a"] * 3, {}, {"height": None}, {"height": 1, "width": "x"}]
    strange += [{"shortest_edge": [1]}, [None] * 3, {"a": {"b": []}}]
    refused = 0
    for kind in processor.CLASS_OF:
        for name in names:
            for x in strange:
                for more in ({}, {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}):
                    try:
                        found = processor.pixels(more | {name: x}, kind, 8, "file")
                        assert steps.to_size(picture(3, 5), 8, found.resize).shape == (8, 8, 3)
                        assert np.isfinite([found.mean, found.std]).all()
                    except UserError as error:
                        refused += 1
                        said = str(error)
                        assert (name in said or "do_pad" in said) and "\n" not in said
    assert refused > 500


def test_the_file_of_a_processor_counts_before_the_older_one(tmp_path):
    assert processor.read(tmp_path, "clip", 20) is None
    (tmp_path / hub.PREPROCESSOR).write_text(json.dumps({"image_mean": 0.25}))
    assert processor.read(tmp_path, "clip", 20).mean == (0.25,) * 3
    (tmp_path / hub.PROCESSOR).write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert processor.read(tmp_path, "clip", 20).mean == (0.25,) * 3
    (tmp_path / hub.PROCESSOR).write_text(json.dumps({"image_processor": {"image_mean": 0.75}}))
    assert processor.read(tmp_path, "clip", 20).mean == (0.75,) * 3
    (tmp_path / hub.PROCESSOR).write_text(json.dumps({"image_processor": 3}))
    with pytest.raises(UserError, match="image_processor=3 is no group of fields"):
        processor.read(tmp_path, "clip", 20)


@pytest.mark.parametrize(
    ("how", "same"),
    [
        ("pil_bicubic_aa", False), ("pil_bicubic_pad", True), ("pil_bicubic_stretch", True),
        ("pil_box", False), ("nearest", False), ("shortest=24 kernel=bicubic crop=16x16", True),
        ("size=20x17 kernel=hamming crop=16x16", True), ("crop=16x16", True),
        ("pad=122,116,104 shortest=16 kernel=box", True),
        ("shortest_rounded=16 kernel=lanczos crop=16x16", False),
    ],
)  # fmt: skip
def test_what_is_told_of_an_experiment_is_read_back(how, same):
    """Where theirs can do the same it does; else a note says that it does not."""
    e = config.resolve(config.load(str(ROOT / "experiments" / "small_clip.py")), run.families())
    assert e.model.image == 16
    mean = processor.CLIP_MEAN
    e = dataclasses.replace(
        e,
        data=dataclasses.replace(e.data, resize=how),
        model=dataclasses.replace(e.model, mean=mean),
    )
    told, note = processor.told(e)
    back = processor.pixels(told, "clip", 16, "file")
    assert (back.mean, back.std) == (e.model.mean, e.model.std) and bool(note) != same
    for size in SIZES if same else [(48, 48)]:
        one, two = (steps.to_size(picture(*size), 16, x) for x in (how, back.resize))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "how", ["jax_cubic", "pil_lanczos_pad", "pad=1,2,3 shortest=16 kernel=box"]
)
def test_what_theirs_cannot_do_is_said(how):
    e = config.resolve(config.load(str(ROOT / "experiments" / "small_clip.py")), run.families())
    told, note = processor.told(
        dataclasses.replace(e, data=dataclasses.replace(e.data, resize=how))
    )
    assert told == {} and re.search("is not theirs|in a colour they do not", note)


@pytest.mark.hf
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_pixels_beside_theirs(case):
    """New pictures and sizes, transparent and grey ones too."""
    pytest.importorskip("transformers")
    from make_pixels import OFF, numbers
    from make_pixels import processor as theirs

    rng, side, found, held = np.random.default_rng(), CASES[case][1], read(case), theirs(case)
    for _ in range(6):
        pixels = picture(*rng.integers(1, 400, 2))
        made = steps.to_size(pixels, side, found.resize)
        np.testing.assert_array_equal(made, numbers(held, pixels, **OFF))
        signal = standard(made[None], found.mean, found.std)[0]
        np.testing.assert_allclose(signal, numbers(held, pixels), rtol=1e-5, atol=1e-5)
