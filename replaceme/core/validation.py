"""Turn the errors of a pydantic schema into lines that users can act on: `where: what is wrong; what to do`."""

import difflib
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

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
    path, parent = _place(schema, item["loc"])
    where = ".".join(map(_short, path)) or "top level"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_known(parent, str(path[-1]))}"
    if item["type"] == "missing":
        return f"{where}: missing; {_description(parent, str(path[-1]))}"
    if item["type"] == "union_tag_invalid":
        key, known = item["ctx"]["discriminator"].strip("'"), item["ctx"]["expected_tags"]
        return f"{where}.{key}: Input should be {known} (found {shortened(item['input'][key])})"
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


def _place(schema: type[BaseModel], loc: tuple) -> tuple[list, type[BaseModel] | None]:
    """Return the keys at which an error is, and the model that describes the last of them.

    Fields and the values of named mappings are followed; of sections whose models differ by a key, pydantic names its
    value too.
    """
    path, current, parent = [], schema, None
    for part in loc:
        models = _told_apart(current)
        if part in models:
            current = models[part]
        elif part != "[key]":
            path.append(part)
            parent = current if isinstance(current, type) and issubclass(current, BaseModel) else None
            if parent is not None:
                field = parent.model_fields.get(str(part))
                current = field.annotation if field else None
            else:
                current = next(reversed(get_args(current)), None)
    return path, parent


def _told_apart(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return the models of a union by the value of the key that tells them apart."""
    if get_origin(annotation) is not Annotated:
        return {}
    union, *known = get_args(annotation)
    key = next((one.discriminator for one in known if getattr(one, "discriminator", None)), None)
    return {get_args(model.model_fields[key].annotation)[0]: model for model in get_args(union) if key}


def _known(model: type[BaseModel] | None, key: str) -> str:
    """Return a hint at the key that was meant, or at those that there are."""
    known = list(model.model_fields) if model else []
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    title = model.model_config.get("title") if model else None
    return f"known keys{f' of {title}' if title else ''}: {', '.join(known)}"


def _description(model: type[BaseModel] | None, key: str) -> str:
    field = model.model_fields.get(key) if model else None
    return field.description or "" if field else ""
