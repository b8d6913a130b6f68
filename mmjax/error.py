"""The one exception a user is meant to see: one line that names thing, value and remedy."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Bad input, damaged data, a full disk; the command line prints one line and exits with 2."""


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said behind a name that is not `known`: which are, and which it is like."""
    have = [*known]
    return f"is unknown{near(name, have)}; have: {', '.join(have)}"


def near(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'build'?)", if one of `known` is like a name; else nothing."""
    found = difflib.get_close_matches(name, [*known], 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def some(names: Sequence[str], most: int = 3) -> str:
    """A list for a message: the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
