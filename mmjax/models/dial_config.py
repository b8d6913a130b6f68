"""The configuration of the dial between autoregression and flow, see `models.dial`."""

from dataclasses import dataclass
from typing import Any

from mmjax import dial
from mmjax.dial import FORMS
from mmjax.error import UserError
from mmjax.models.chameleon import Config as Chameleon
from mmjax.models.decoder import DecoderConfig
from mmjax.models.transfusion import Config as Transfusion


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        transfusion, chameleon: the base's configuration; one of them, the other None.
        text_alpha, image_alpha: from 0, flow, to 1, autoregression.
        form: "ramp", windows that overlap; "block", blocks one after the other. See `mmjax.dial`.
        weight: of a masked token, "elbo" for 1 / (1 - t), or "none" for the same at every t, which
            is no bound (MaskGIT, Show-o).
        schedule: of masks, "linear" or "cosine"; see `mmjax.dial.clean_chance`.
        two_streams: masked tokens stand in copies behind the row, all blocks at once, and all else
            reads them as they are; see `models.blocks`. Up to three times the positions.
        clean_mask: how patches of one block see each other once they are clean: "causal", or "both"
            ways, as while they are denoised (BD3-LM); for patches in blocks.
    """

    transfusion: Transfusion | None
    chameleon: Chameleon | None
    text_alpha: float
    image_alpha: float
    form: str
    weight: str
    schedule: str
    two_streams: bool = False
    clean_mask: str = "causal"

    def __post_init__(self):
        """Checks fields against each other."""
        if (self.transfusion is None) == (self.chameleon is None):
            given = "neither" if self.chameleon is None else "both"
            raise UserError(
                f"model.transfusion and model.chameleon: {given} given; give one of them, and "
                f"None for the other"
            )
        for name in ("text_alpha", "image_alpha"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"model.{name}={getattr(self, name)} must lie between 0 and 1")
        has = {
            "form": FORMS,
            "weight": ("elbo", "none"),
            "schedule": dial.SCHEDULES,
            "clean_mask": ("causal", "both"),
        }
        for name, known in has.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"model.{name}={getattr(self, name)!r} is unknown; have: {', '.join(known)}"
                )
        if self.two_streams and (self.form != "block" or not self.masks):
            raise UserError(
                f"model.two_streams=True is for discrete tokens in blocks, which form={self.form!r}"
                f" and text_alpha={self.text_alpha} do not make; give form='block' and an alpha "
                f"below 1, or two_streams=False"
            )
        if self.clean_mask == "both" and (self.form != "block" or self.transfusion is None):
            raise UserError(
                "model.clean_mask='both' is for patches in blocks; give form='block' and a "
                "Transfusion for base, or clean_mask='causal'"
            )
        if self.transfusion is not None:
            self._check_pictures(self.transfusion)

    def _check_pictures(self, base: Transfusion) -> None:
        if base.picture_mask != "both":
            raise UserError(
                f"model.transfusion.picture_mask={base.picture_mask!r}: who sees whom follows from "
                f"model.image_alpha; give 'both'"
            )
        if base.kinds:
            raise UserError(
                f"model.transfusion.kinds has {', '.join(base.kinds)}: a dial has no kinds of "
                f"pictures; give kinds=dict()"
            )
        if base.unet and self.image_alpha > 0:
            raise UserError(
                f"model.transfusion.unet={base.unet} shows patches to their neighbours, which only "
                f"model.image_alpha=0 allows; give unet=0 for image_alpha={self.image_alpha}"
            )

    @property
    def masks(self) -> tuple[float, ...]:
        """The alphas of discrete tokens that are masked with time."""
        given = (self.text_alpha, *([] if self.chameleon is None else [self.image_alpha]))
        return tuple(alpha for alpha in given if alpha < 1)

    @property
    def base(self) -> Any:
        """The base's configuration."""
        return self.chameleon if self.transfusion is None else self.transfusion

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's shape."""
        return self.base.decoder

    @property
    def codec(self):
        """The base's codec, or None."""
        return self.base.codec

    @property
    def image(self) -> int:
        """Side of a picture in pixels."""
        return self.base.image

    @property
    def tokens(self) -> int:
        """Positions a picture takes."""
        return self.base.tokens

    @property
    def codes(self) -> int:
        """Image codes in the vocabulary."""
        return getattr(self.base, "codes", 0)
