"""Parameters of a test that only repeat what others of it run: `make test-all` has them."""

import pytest


def repeats(*values) -> list:
    """The values as parameters, each marked slow; one that is a tuple is of several arguments."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]


def repeat(value):
    """One value as a parameter that is marked slow, be it a tuple."""
    return pytest.param(value, marks=pytest.mark.slow)
