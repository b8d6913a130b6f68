"""How pictures are drawn and words are chosen: plain values, checked where they are made."""

import math
from dataclasses import dataclass

from mmjax.error import UserError

SOLVERS = ("euler", "heun", "ddim")


@dataclass(frozen=True)
class Choice:
    """How one token is chosen from its logits.

    Attributes:
        temperature: 0 is greedy.
        top_k: of how many most likely ids; 0 all. top_p: of the fewest whose probability reaches
            it; 1 all. min_p: of those at least so likely, as a share of the likeliest; 0 all.
        repetition: what logits of ids seen before are divided by (multiplied, where negative).
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition: float

    def __post_init__(self):
        """Checks ranges."""
        for name, low, high in (
            ("temperature", 0, 1e30),
            ("top_k", 0, 10**9),
            ("top_p", 1e-6, 1),
            ("min_p", 0, 1),
            ("repetition", 1e-6, 1e6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name}={value} must lie between {low} and {high}")
        if not isinstance(self.top_k, int):
            raise UserError(f"top_k={self.top_k} must be a whole number")


@dataclass(frozen=True)
class SampleConfig:
    """How pictures are drawn and captions written by default.

    What a family's `generate` has no option for, such as the solver of one with codes, it ignores.

    Attributes:
        solver, steps: of pictures that are denoised: "euler", "heun" or "ddim", and its steps.
        shift: how much of them lie near noise, see `diffusion.shifted`; 1 spaces them evenly.
        guidance: of pictures, the classifier-free scale s in u + s (c - u); 1 is none.
        guidance_start, guidance_stop: times between which pictures that are denoised are guided.
        guidance_least: see `sample.flow.Solver`; 1 leaves guided velocities as they are.
        text_guidance: w of insertions (OneFlow), see `sample.oneflow`, or s as above for a text
            (the dial); 1 is none.
        image_guidance: scale of the pictures in a prompt apart from its text (Chameleon's form with
            three streams); 0 does not tell them apart. contrast: alpha of contrastive decoding of
            codes, instead of guidance; 0 is none. contrast_k: its k, see `sample.choose.contrast`.
        text: most tokens of a text. words, codes: how text tokens and image codes are chosen.
    """

    solver: str
    steps: int
    shift: float
    guidance: float
    guidance_start: float
    guidance_stop: float
    guidance_least: float
    text_guidance: float
    image_guidance: float
    contrast: float
    text: int
    words: Choice
    codes: Choice
    contrast_k: int = 1

    def __post_init__(self):
        """Checks ranges."""
        from_zero = dict.fromkeys(("guidance", "image_guidance", "text_guidance"), 0)
        for name, least in ({"steps": 1, "text": 1, "contrast_k": 1} | from_zero).items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}, finite")
        for name in ("contrast", "guidance_start", "guidance_stop", "guidance_least"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.solver not in SOLVERS:
            raise UserError(f"solver={self.solver!r} is unknown; have: {', '.join(SOLVERS)}")
        if not 0 < self.shift < math.inf:
            raise UserError(f"shift={self.shift} must be above 0, finite")
