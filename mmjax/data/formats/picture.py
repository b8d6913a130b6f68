"""Encoded pictures, accepted only if they decode."""

import io
import warnings

import PIL.Image

from mmjax.data.pixels import check_depth

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Nothing else Pillow could read: some of its decoders start other programs.
CODECS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def checked(data: bytes) -> bytes:
    """The same bytes, after decoding them once (of an animation, the first frame).

    Raises:
        ValueError: if they are no picture, damaged, or of more pixels than Pillow deems safe.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata in a picture that decodes
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            with PIL.Image.open(io.BytesIO(data), formats=CODECS) as image:
                image.load()
                check_depth(image)
        except PIL.UnidentifiedImageError as error:
            raise ValueError(f"not a picture of a known kind ({', '.join(CODECS)})") from error
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            most = f"{PIL.Image.MAX_IMAGE_PIXELS:,}"
            raise ValueError(f"picture of more than {most} pixels") from error
        except Exception as error:  # decoders of damaged bytes raise whatever they trip over
            raise ValueError(f"damaged picture: {error or type(error).__name__}") from error
    return data
