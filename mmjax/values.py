"""Nested mappings <-> frozen dataclasses, checked against their annotations."""

import dataclasses
import json
import math
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmjax.error import UserError, near


def whole(name: str, value: Any) -> int:
    """A whole number, also of numpy's or jax's types, as a plain int.

    Raises:
        UserError: for what is none, bools and strings among them.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{name}={shown(value)} must be a whole number") from error


def number(name: str, value: Any) -> float:
    """A number, also of numpy's or jax's types, as a plain float.

    Raises:
        UserError: for what is none, bools, strings and lists among them.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}={shown(value)} must be a number") from error


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, numpy's numbers as plain ones, in one line."""
    plain = value.item() if isinstance(value, np.generic) else value
    text = " ".join(repr(plain).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked(name: str, given: Mapping[str, Any], kind: Any) -> Any:
    """A named value: a whole number where its kind is int, a number where it is float.

    Raises:
        UserError: if it is not.
    """
    if kind is int:
        number(name, given[name])
        return whole(name, given[name])
    return number(name, given[name]) if kind is float else given[name]


def _named(kind: type) -> str:
    return getattr(kind, "__name__", str(kind))


def _value(kind, value, path: str):
    """One field's value, checked against its annotation; numpy's numbers count as plain ones."""
    value = value.item() if isinstance(value, np.generic) else value
    origin = typing.get_origin(kind)
    if origin is types.UnionType:  # `X | None`
        inner = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        return None if value is None else _value(inner, value, path)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    if origin in (Mapping, dict) or kind in (Mapping, dict):
        inner = typing.get_args(kind)[1]
        if not isinstance(value, Mapping | ConfigDict):
            raise UserError(f"{path}={value!r} must be a group: name -> {_named(inner)}")
        return types.MappingProxyType(
            {k: _value(inner, v, f"{path}.{k}") for k, v in dict(value).items()}
        )
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"{path}={value!r} must be a list, as (1, 2)")
        inner = typing.get_args(kind)[0]
        return tuple(_value(inner, v, f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and math.isnan(value):
        raise UserError(f"{path}={value!r} must be a number")
    if kind is Any or type(value) is kind:
        return value
    raise UserError(f"{path}={value!r} is of type {_named(type(value))}; it must be {_named(kind)}")


def build(kind: type, values, path: str = "config"):
    """Mapping -> dataclass `kind`, recursively.

    Raises:
        UserError: for an unknown field (with the nearest name), a missing one, or a wrong type.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f"{path}={values!r} must be a group of fields ({_named(kind)})")
    values = dict(values)
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            hint = near(name, hints) or f"; have: {', '.join(hints)}"
            raise UserError(f"{path} has no field {name!r}{hint}")
    optional = {f.name for f in dataclasses.fields(kind) if _has_default(f)}
    for name, hint in hints.items():
        if name not in values and name not in optional:
            raise UserError(f"{path}.{name} is missing; give it a value of type {_named(hint)}")
    return kind(**{name: _value(hints[name], values[name], f"{path}.{name}") for name in values})


def _has_default(field: dataclasses.Field) -> bool:
    absent = dataclasses.MISSING
    return field.default is not absent or field.default_factory is not absent


def _at_default(e, field: dataclasses.Field) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return getattr(e, field.name) == field.default_factory()
    return field.default is not dataclasses.MISSING and getattr(e, field.name) == field.default


def to_dict(e) -> Any:
    """A dataclass of such -> plain nested dict, as stored in config.json.

    A field that may be left out is, where it holds its default: what was stored before there was
    such a field is no different.
    """
    if dataclasses.is_dataclass(e):
        kept = [f for f in dataclasses.fields(e) if not _at_default(e, f)]
        return {f.name: to_dict(getattr(e, f.name)) for f in kept}
    if isinstance(e, Mapping):
        return {k: to_dict(v) for k, v in e.items()}
    return list(e) if isinstance(e, tuple) else e  # as JSON gives it back


def to_json(e) -> str:
    """The same as JSON text."""
    return json.dumps(to_dict(e), indent=1)


def nearest(value: int, divisor: int) -> str:
    """The two multiples of `divisor` around `value`, as 'a or b'."""
    low = max(value // divisor, 1) * divisor
    return f"{low} or {low + divisor}"


def difference(old: Mapping, new: Mapping, path: str = "") -> list[str]:
    """Lines 'name: old -> new' for every leaf that differs between two nested dicts."""
    lines = []
    for key in sorted({*old, *new}):
        a, b, name = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines
