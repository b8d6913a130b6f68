"""EfficientNet-Lite0 feature distance: how far two pictures are apart to a network.

Its form is that of Zhang et al. 2018 (arXiv 1801.03924, eq. 1) with all channels weighing the same:
it has neither their backbones nor their weights fitted to human judgements, so its values cannot be
compared with theirs.

For each of the 149 validation pictures of OpenMoji, at 32 and at 64 pixels, the distance to a copy
blurred by a Gaussian of one pixel was larger than to copies made darker and lighter by the same
mean squared error. So small pictures are not enlarged first.
"""

import jax
import jax.numpy as jnp

from mmjax.codecs import efficientnet
from mmjax.codecs.efficientnet import Params

# Strides 2 to 16: at 32 pixels the last still has 2 x 2 places, stages 6 and 7 would have one.
STAGES = (0, 1, 2, 3, 4)
UNIT_EPS = 1e-6


def load() -> Params:
    """The weights of the stages used, see `efficientnet.load`.

    Raises:
        UserError: if the package that has them is missing or damaged.
    """
    params = efficientnet.load()
    return {name: params[name] for name in ("stem", *(f"stage{i}" for i in STAGES if i))}


def distance(params: Params, a, b) -> jax.Array:
    """EfficientNet-Lite0 feature distance of pictures [n, h, w, 3] in [-1, 1] -> f32 [n], from 0.

    Features are brought to length 1 over channels at each place; their squared differences are
    summed over channels, averaged over places and summed over stages. The weights `params` of
    `load` get no gradient.
    """
    params = jax.lax.stop_gradient(params)
    pairs = zip(
        efficientnet.features(params, a, STAGES),
        efficientnet.features(params, b, STAGES),
        strict=True,
    )
    apart = [((_unit(x) - _unit(y)) ** 2).sum(-1).mean((1, 2)) for x, y in pairs]
    return jnp.stack(apart).sum(0)


def _unit(x):
    # The epsilon under the root keeps the gradient finite where all channels are 0.
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + UNIT_EPS)
