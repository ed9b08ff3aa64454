"""Trees of frozen dataclasses of plain values, as JSON and back; where there is a choice of classes, "type" names one.

What is read is checked before anything is built: each value against the type that its field declares. Numbers must be
finite and whole numbers fit into 64 bits, so that no arithmetic of a class meets what it was not written for.
"""

import dataclasses
import math
import types
import typing
from typing import Any

_MOST = 2**63


def choices(cls: type, field: str) -> dict[str, type]:
    """The classes that a field may hold, by name; empty for a field of one class or of plain values."""
    hint = typing.get_type_hints(cls)[field]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    return {
        option.__name__: option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)
    }


def to_dict(value: Any, *, hashed: bool = False) -> dict[str, Any]:
    """A dataclass as nested dicts of plain values; "type" names the class where there is a choice. `hashed`: without
    fields that came later and are as it was before, so that a new field gives no run another name."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if hashed and inner == field.metadata.get("was", dataclasses.MISSING):
            continue
        result[field.name] = inner
        if dataclasses.is_dataclass(inner):
            chosen = {"type": type(inner).__name__} if choices(type(value), field.name) else {}
            result[field.name] = chosen | to_dict(inner, hashed=hashed)
    return result


def from_dict(cls: type, values: Any, path: str = "") -> Any:
    """Inverse of `to_dict` after JSON. Raises ValueError naming a field that is unknown, missing, of another type or
    impossible."""
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'config'}: must be an object, got {_told(values)}")
    fields = dataclasses.fields(cls)
    # What came after configs had been saved without it: `metadata={"was": ...}` is how it was then.
    values = {field.name: field.metadata["was"] for field in fields if "was" in field.metadata} | values
    names = {field.name for field in fields}
    if values.keys() != names:
        unknown = [name[:100] for name in sorted(values.keys() - names)[:10]]
        raise ValueError(f"{path or 'config'}: unknown {unknown}, missing {sorted(names - values.keys())}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        options = choices(cls, name)
        if options:
            if not isinstance(value, dict):
                raise ValueError(f"{where}: must be an object with a type, got {_told(value)}")
            chosen = value.get("type")
            if not isinstance(chosen, str) or chosen not in options:
                raise ValueError(f"{where}: type must be one of {sorted(options)}, got {_told(chosen)}")
            value = from_dict(options[chosen], {key: of for key, of in value.items() if key != "type"}, where)
        elif dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value, where)
        else:
            value = _plain(hints[name], value, where)
        arguments[name] = value
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error
    except (TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{path or 'config'}: impossible values: {error}") from error


def _plain(hint: Any, value: Any, where: str) -> Any:
    """A plain value, lists as tuples. Raises ValueError where it is not of the type."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list):
            kinds = typing.get_args(option)
            kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
            if len(kinds) == len(value):
                pairs = enumerate(zip(kinds, value, strict=True))
                return tuple(_plain(kind, one, f"{where}[{number}]") for number, (kind, one) in pairs)
        elif typing.get_origin(option) is typing.Literal:
            if isinstance(value, str) and value in typing.get_args(option):
                return value
        elif _is(option, value):
            return value
    wanted = " or ".join(_name(option) for option in options)
    raise ValueError(f"{where}: must be {wanted}, got {_told(value)}")


def _is(option: Any, value: Any) -> bool:
    if option is float:
        return _is(int, value) or (type(value) is float and math.isfinite(value))
    if option is int:
        return type(value) is int and -_MOST <= value < _MOST
    if option is str:
        # A lone surrogate is JSON, and no file, class or terminal takes it.
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value)
    return type(value) is option


def _name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(option)))}"
    names = {int: "a whole number of 64 bits", float: "a finite number", str: "text", bool: "true or false"}
    if typing.get_origin(option) is tuple:
        return f"a list of {'numbers' if str not in typing.get_args(option) else 'text'}"
    return "null" if option is types.NoneType else names.get(option, str(option))


def _told(value: Any) -> str:
    """The value, cut where it is long. JSON's own words for what is not a Python literal."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or type(value) is bool else None
    text = text or ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
