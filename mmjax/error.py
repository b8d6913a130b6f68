"""The one exception a user is meant to see: a single line that names the thing, the value and the remedy."""


class UserError(ValueError):
    """Bad input, damaged data or a full disk; the command line prints it as one line and exits with 2."""
