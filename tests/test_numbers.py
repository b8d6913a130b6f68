"""Numbers from users: of Python's, numpy's and jax's types, and what is none."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny, tiny_config

from mmjax import config, run, values
from mmjax.error import UserError
from mmjax.sample.sizes import keys_of as row_keys
from mmjax.trained import Trained, _counts, load

WHOLE = [5, np.int64(5), np.uint8(5), np.array(5), jnp.int32(5)]
REAL = [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.float32(0.5)]
NONE = [True, np.True_, "5", b"5", None, [5], {5}, 5j, np.array([5, 5]), object]


def test_numbers_of_every_type_are_numbers():
    for x in WHOLE:
        assert values.whole("n", x) == 5 and type(values.whole("n", x)) is int
    for x in [*WHOLE, *REAL]:
        assert values.number("n", x) in (5, 0.5) and type(values.number("n", x)) is float


@pytest.mark.parametrize("x", NONE, ids=repr)
def test_what_is_no_number_is_named_in_one_line(x):
    for function, said in ((values.whole, "a whole number"), (values.number, "a number")):
        with pytest.raises(UserError, match=f"^top_k=.* must be {said}$") as error:
            function("top_k", x)
        assert "\n" not in str(error.value) and len(str(error.value)) < 130
    for x in REAL:
        with pytest.raises(UserError, match=r"^n=.*must be a whole number$"):
            values.whole("n", x)


@pytest.mark.parametrize("x", [*NONE[:5], 1.5, np.float32(2.0), {3}], ids=repr)
def test_seeds_are_whole_numbers(x):
    for seed, count in ((x, 2), ([1, x], 2), ((x, 1), 2)):
        with pytest.raises(UserError, match=r"^seed=.* must be a whole number$"):
            row_keys(seed, count)


def test_seeds_of_numpys_types_are_seeds():
    for seed in (3, np.int64(3), np.array(3), jnp.int32(3), np.uint8(3)):
        assert (row_keys(seed, 2) == row_keys(3, 2)).all()
    for seeds in ((3, 4), np.array([3, 4]), np.array([3, 4], np.uint8), range(3, 5)):
        assert (row_keys(seeds, 2) == row_keys([3, 4], 2)).all()
    for wrong in (np.int64(-1), [1, 2**32]):
        with pytest.raises(UserError, match=r"seed=.* must lie between 0 and 4294967295$"):
            row_keys(wrong, 2)


def test_options_of_numpys_types_are_options():
    model = Trained(SimpleNamespace(experiment=tiny()), {}, 0)
    plain = {"text": 7, "top_k": 5, "image_top_k": 3, "temperature": 0.5, "guidance": 2.0}
    typed = {"text": np.int32(7), "top_k": np.int64(5), "image_top_k": np.array(3)}
    typed |= {"temperature": np.float64(0.5), "guidance": np.float32(2)}
    found = model.sample_config(typed)
    assert found == model.sample_config(plain) and found.words.top_k == 5
    assert [type(x) for x in (found.text, found.words.top_k, found.guidance)] == [int, int, float]
    assert model.sample_config({"guidance": 2}).guidance == 2.0
    for name in ("text", "top_k", "image_top_k", "temperature", "image_min_p", "guidance"):
        for x in (True, "5", None, [5]):
            with pytest.raises(UserError, match=f"^{name}=.* must be a number$"):
                model.sample_config({name: x})
    assert _counts(np.int64(2), np.int8(1)) == (2, 1)


def test_a_step_is_a_whole_number(tmp_path):
    for step in ("5", 1.5, True):
        with pytest.raises(UserError, match=r"^step=.* must be a whole number$"):
            load(tmp_path, step)


def test_numbers_in_an_experiment_may_be_numpys():
    c = tiny_config().to_dict()
    c["steps"], c["optim"]["peak"], c["batch"] = np.int64(6), np.float32(0.5), np.int32(8)
    found = config.resolve(c, run.families())
    assert (found.steps, found.optim.peak, found.batch) == (6, 0.5, 8)
    assert type(found.steps) is int and type(found.optim.peak) is float
    c["steps"] = np.float32(6.0)
    with pytest.raises(UserError, match=r"config.steps=6.0 is of type float; it must be int"):
        config.resolve(c, run.families())
