"""Turn the errors of a pydantic schema into lines that users can act on: `where: what is wrong; what to do`."""

import difflib
from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from replaceme.core.errors import ReplaceMeError, printable

LONGEST_NAME = 100  # characters; leaves room for what the workflow appends, in the 255 bytes of a file's name


def validated(
    schema: type[BaseModel], raw: Any, origin: str, extra_checks: Callable[[Any], list[str]] = lambda raw: []
) -> Any:
    """Return an instance of `schema` from plain data, or raise a ReplaceMeError that lists all that is wrong with
    it.
    """
    config, lines = None, []
    try:
        config = schema.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(schema, item) for item in error.errors()]
    lines += extra_checks(raw)
    if lines:
        raise ReplaceMeError("\n".join(f"{origin}: {line}" for line in lines))
    return config


def _explain(schema: type[BaseModel], item: dict) -> str:
    path = [part for part in item["loc"] if part != "[key]"]
    where = ".".join(map(_short, path)) or "top level"
    if item["type"] == "extra_forbidden":
        known = _fields_at(schema, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{where}: missing; {_description_at(schema, path)}"
    if "[key]" in item["loc"]:
        return (
            f"{where}: not a usable name; use letters, digits, '.', '_' and '-', beginning with a letter or a digit, "
            f"at most {LONGEST_NAME} characters"
        )
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if item["type"] == "value_error" else f" (found {shortened(item['input'])})"
    return f"{where}: {printable(message)}{shown}"


def _short(part: Any) -> str:
    """Return a key on one line, cut to what fits in an error line."""
    text = printable(part)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def shortened(value: Any) -> str:
    """Return a value as Python writes it, cut to what fits on one line."""
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; nesting without end
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def _schema_at(schema: type[BaseModel], path: list) -> type[BaseModel] | None:
    """Return the model that describes `path`, following fields and the values of named mappings."""
    current: Any = schema
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            arguments = get_args(current)
            current = arguments[-1] if arguments else None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _fields_at(schema: type[BaseModel], path: list) -> list[str]:
    found = _schema_at(schema, path)
    return list(found.model_fields) if found else []


def _description_at(schema: type[BaseModel], path: list) -> str:
    parent = _schema_at(schema, path[:-1])
    field: FieldInfo | None = parent.model_fields.get(str(path[-1])) if parent else None
    return field.description or "" if field else ""
