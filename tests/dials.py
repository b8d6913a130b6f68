"""Small models of the dial with random weights, over patches and over codes."""

from dataclasses import replace

import jax
from random_batch import VOCABULARY
from small import make, transfusion_config
from tiny import tiny_chameleon_config

from mmjax import config, run
from mmjax.batch import Vocabulary
from mmjax.mesh import Rules, make_mesh
from mmjax.models import chameleon, dial

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
PATCHES = transfusion_config(z_weight=0.0)
PARAMS = make(PATCHES)[1] | {"mask": jax.random.normal(jax.random.key(5), (32,))}
CODES = replace(config.resolve(tiny_chameleon_config(), run.families()).model, z_weight=1e-2)
CODED = Vocabulary(52, masks=(7, 8), codes=40, code_count=12)
CODE_MODEL = chameleon.build(CODES, CODED, RULES)
CODE_PARAMS = jax.jit(CODE_MODEL.init)(jax.random.key(0)) | {"mask": PARAMS["mask"]}


def patches(
    text, image, form="ramp", weight="elbo", schedule="linear", clean_mask="causal", **changes
):
    """Transfusion behind the dial; `changes` are fields of its configuration."""
    base = replace(PATCHES, **changes)
    c = dial.Config(base, None, text, image, form, weight, schedule, clean_mask=clean_mask)
    return dial.build(c, VOCABULARY, RULES)


def codes(text, image, form="ramp", weight="elbo", schedule="linear"):
    """Chameleon behind the dial."""
    c = dial.Config(None, CODES, text, image, form, weight, schedule)
    return dial.build(c, CODED, RULES)
