"""The one exception a user is meant to see: one line that names thing, value and remedy."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input, damaged data, a full disk; the command line prints one line and exits with 2."""


def some(names: Sequence[str], most: int = 3) -> str:
    """A list for a message: the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
