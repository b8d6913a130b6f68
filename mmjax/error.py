"""The one exception a user is meant to see: one line that names thing, value and remedy."""


class UserError(ValueError):
    """Bad input, damaged data, a full disk; the command line prints one line and exits with 2."""
