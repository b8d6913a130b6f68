"""The one exception a user is meant to see: one line that names thing, value and remedy."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Bad input, damaged data, a full disk; the command line prints one line and exits with 2."""


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said behind a name that is not `known`: which are, and which it is like."""
    have = [*known]
    near = difflib.get_close_matches(name, have, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"is unknown{hint}; have: {', '.join(have)}"


def some(names: Sequence[str], most: int = 3) -> str:
    """A list for a message: the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
