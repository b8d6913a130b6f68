"""Feature distance: how far two pictures are apart to a network, of NETWORKS.

Its form is that of Zhang et al. 2018 (arXiv 1801.03924, eq. 1) with all channels weighing the same:
it has neither their backbones nor their weights fitted to human judgements, so its values cannot be
compared with theirs. A distance is named for its network: this one is EfficientNet-Lite0's.

For each of the 149 validation pictures of OpenMoji, at 32 and at 64 pixels, the distance to a copy
blurred by a Gaussian of one pixel was larger than to copies made darker and lighter by the same
mean squared error. So small pictures are not enlarged first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.codecs import efficientnet
from mmjax.codecs.efficientnet import Params

# Strides 2 to 16: at 32 pixels the last still has 2 x 2 places, stages 6 and 7 would have one.
STAGES = (0, 1, 2, 3, 4)
UNIT_EPS = 1e-6


class Network(NamedTuple):
    """What looks at pictures.

    Attributes:
        load: () -> its weights; a UserError if they are missing or damaged.
        features: (weights, [n, h, w, 3] in [-1, 1]) -> features of its stages, [n, h', w', c] each.
    """

    load: Callable[[], Params]
    features: Callable


def load_lite0() -> Params:
    """The weights of the stages used, see `efficientnet.load`."""
    params = efficientnet.load()
    return {name: params[name] for name in ("stem", *(f"stage{i}" for i in STAGES if i))}


def lite0(params: Params, x) -> tuple[jax.Array, ...]:
    """Features of the stages used."""
    return efficientnet.features(params, x, STAGES)


NETWORKS = {"efficientnet_lite0": Network(load_lite0, lite0)}


def distance(network: Network, params: Params, a, b) -> jax.Array:
    """Distance of pictures [n, h, w, 3] in [-1, 1] to a network -> f32 [n], from 0.

    Features are brought to length 1 over channels at each place; their squared differences are
    summed over channels, averaged over places and summed over stages. The weights `params` of
    its `load` get no gradient.
    """
    params = jax.lax.stop_gradient(params)
    pairs = zip(network.features(params, a), network.features(params, b), strict=True)
    apart = [((_unit(x) - _unit(y)) ** 2).sum(-1).mean((1, 2)) for x, y in pairs]
    return jnp.stack(apart).sum(0)


def _unit(x):
    # The epsilon under the root keeps the gradient finite where all channels are 0.
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + UNIT_EPS)
