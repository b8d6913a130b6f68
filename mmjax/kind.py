"""What a slot of pictures may hold besides the default: shapes, patches, and who has them."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmjax.batch import IMAGE
from mmjax.error import UserError


@dataclass(frozen=True)
class KindConfig:
    """What a picture of another kind than the default is.

    Attributes:
        height, width: in pixels. patch: side of a patch.
        like: "image" for another shape of the default's modality; "" for a modality of its own.
        sources: data sets all of whose pictures are of this kind. Of other data sets a picture
            takes, among the default and what is like it, the kind nearest in aspect.
    """

    height: int
    width: int
    patch: int
    like: str = "image"
    sources: tuple[str, ...] = ()

    @property
    def patches(self) -> int:
        """Patches of a picture, p."""
        return (self.height // self.patch) * (self.width // self.patch)


def modalities(likes: Sequence[str]) -> tuple[int, ...]:
    """`Batch.modality` of the default kind and of others, given what each of them is like."""
    count, found = IMAGE, [IMAGE]
    for like in likes:
        count += not like
        found.append(IMAGE if like else count)
    return tuple(found)


def check(c) -> None:
    """Checks the kinds of pictures, and that nothing is asked of them that squares only do.

    `c`: a DataConfig. Raises UserError, naming field, value and remedy.
    """
    for name, k in c.kinds.items():
        at = f"data.kinds.{name}"
        if name == "image" or not name.isidentifier():
            raise UserError(f"{at} cannot be so named; give a word other than 'image'")
        if min(k.height, k.width, k.patch) < 1 or k.height % k.patch or k.width % k.patch:
            raise UserError(
                f"{at}.patch={k.patch} must divide height={k.height} and width={k.width}"
            )
        if k.like not in ("", "image"):
            raise UserError(f"{at}.like={k.like!r} is unknown; have: 'image', ''")
        if k.like and k.patch != c.patch:
            raise UserError(
                f"{at}.patch={k.patch} must be data.patch={c.patch}, whose weights it "
                f"shares; or give like=''"
            )
        if unknown := set(k.sources) - set(c.sources):
            raise UserError(f"{at}.sources names {min(unknown)!r}; have: {', '.join(c.sources)}")
        if not k.like and not k.sources:
            raise UserError(f"{at} has no sources, so nothing is of it; name some")
        if c.length < k.patches + 5:
            raise UserError(
                f"data.length={c.length} is too short for a picture of {k.patches} patches "
                f"({at}); try {2 * k.patches + 32}"
            )
    if c.kinds and (c.coded or c.spans or c.bottleneck == "lowres"):
        raise UserError(
            "data.kinds go with pixels as they are: give data.coded=False, data.spans=0.0 and "
            "a bottleneck other than 'lowres', or no kinds"
        )
    named = [s for k in c.kinds.values() for s in k.sources]
    if twice := [s for s in named if named.count(s) > 1]:
        raise UserError(f"data.kinds names source {twice[0]!r} in two kinds; leave it in one")


def check_agree(family: str, of_model, of_data) -> None:
    """Checks that data and model have the same kinds of pictures, in one order.

    No more towers than modalities, either.

    Raises UserError, naming field, value and remedy.
    """
    model, data = getattr(of_model, "kinds", {}), of_data.kinds
    if data and not hasattr(of_model, "kinds"):
        raise UserError(f"a {family} has no kinds of pictures; give config.data.kinds=dict()")
    if list(model) != list(data):
        raise UserError(
            f"config.model.kinds has {', '.join(model) or 'none'}, but config.data.kinds "
            f"{', '.join(data) or 'none'}; name the same in one order"
        )
    for name, k in data.items():
        other = of_model.resolved[list(data).index(name) + 1]
        mine = {"height": k.height, "width": k.width, "patch": k.patch, "like": k.like}
        for key, value in mine.items():
            if getattr(other, key) != value:
                raise UserError(
                    f"config.model.kinds.{name}.{key}={getattr(other, key)!r} differs from "
                    f"config.data.kinds.{name}.{key}={value!r}; give both one value"
                )
    most = 1 + max(modalities([k.like for k in data.values()]))
    towers = getattr(getattr(of_model, "decoder", None), "towers", 1)
    if towers > most:
        raise UserError(
            f"config.model.decoder.towers={towers}, but there are {most} modalities; give at most "
            f"{most}"
        )
