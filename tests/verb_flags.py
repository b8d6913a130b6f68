"""Verbs define flags for processes of their own; tests run several verbs in one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

from mmjax.__main__ import VERBS


@contextmanager
def taken_back() -> Iterator[None]:
    """Verbs that are imported within define their flags (some the same), and take them back."""
    modules, before = {*VERBS.values()}, {*flags.FLAGS}
    try:
        yield
    finally:
        for name in {*flags.FLAGS} - before:
            own = flags.FLAGS.find_module_defining_flag(name) in modules
            if own or name.partition(".")[0] == "config":
                delattr(flags.FLAGS, name)
        for module in modules:
            sys.modules.pop(module, None)
