"""Convert sections of the config schema to command-line options and back: one description for config.yaml, --help and
the rules.
"""

import argparse
import shlex
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import create_model
from pydantic.fields import FieldInfo

from replaceme.config.base import Strict
from replaceme.core.validation import validated

METAVARS = {str: "TEXT", int: "INT", float: "FLOAT"}
TELLING = "method"  # the option that says which of several models a section has
Schema = type[Strict] | Mapping[str, type[Strict]]  # a model, or those of several methods by their names


def add_options(parser: argparse.ArgumentParser, schema: Schema, only: tuple[str, ...] = (), group: Any = None) -> None:
    """Add one `--option` for each field of a config section (or for `only` some of them), with its description as help.

    They go into a group of the section's name, or into `group`, one of the parser's. The action of each knows its
    `section`, by which the help finds its default and a shorter line: the first that has it.
    """
    models = _models(schema)
    if group is None:
        group = parser.add_argument_group(f"{models[0].__name__.removesuffix('Config').lower()} (as in config.yaml)")
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        if only and name not in only:
            continue
        sections = [model for model in models if name in model.model_fields]
        fields = [section.model_fields[name] for section in sections]
        action = group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            required=all(field.is_required() for field in fields),
            default=argparse.SUPPRESS,
            help=" ".join(dict.fromkeys(field.description for field in fields)).replace("%", "%%"),
            **_kind(fields),
        )
        action.section = sections[0]


def default_of(field: FieldInfo) -> str:
    """Return the default of a field as a sentence; nothing for null and for switches that are off."""
    if field.is_required() or field.default is None or field.default is False:
        return ""
    return f"Default: {field.default}."


def from_options(args: argparse.Namespace, schema: Schema, only: tuple[str, ...] = ()) -> Any:
    """Return the section described by the given options (or `only` some of them), validated as config.yaml is."""
    names = set(only or [name for model in _models(schema) for name in model.model_fields])
    given = {name: value for name, value in vars(args).items() if name in names}
    if isinstance(schema, Mapping):
        schema = schema[given.get(TELLING, next(iter(schema)))]
    return validated(schema, given, "options")


def any_given(args: argparse.Namespace, schema: Schema) -> bool:
    """Return whether an option of a section was given."""
    return any(name in vars(args) for model in _models(schema) for name in model.model_fields)


def option_of(args: argparse.Namespace, schema: type[Strict], name: str) -> Any:
    """Return one option as it was given, validated as its key of config.yaml is, else the default of its field."""
    field = schema.model_fields[name]
    if name not in vars(args):
        return field.default
    alone = create_model(schema.__name__, __base__=Strict, **{name: (field.annotation, field)})
    return getattr(validated(alone, {name: getattr(args, name)}, "options"), name)


def _models(schema: Schema) -> list[type[Strict]]:
    return list(schema.values()) if isinstance(schema, Mapping) else [schema]


def to_flags(section: Strict, only: tuple[str, ...] = ()) -> str:
    """Return the options that describe a section, shell-quoted, without values left at their default."""
    flags = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if (only and name not in only) or (not field.is_required() and value == field.default):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(option if value else option.replace("--", "--no-", 1))
        else:
            flags.append(f"{option}={'none' if value is None else value}")  # joined: a value may begin with a dash
    return shlex.join(flags)


def _kind(fields: Sequence[FieldInfo]) -> dict[str, Any]:
    """Return argparse's arguments for a field's type; `none` is an option value only where null is not the default.

    Where several models have it, its words are those of all.
    """
    field = fields[0]
    options = [kind for kind in _alternatives(field.annotation) if kind is not type(None)]
    optional = type(None) in _alternatives(field.annotation) and field.default is not None
    kind = float if {int, float} <= set(options) else options[0]
    if get_origin(kind) is Literal:
        several = [other for one in fields for other in _alternatives(one.annotation) if get_origin(other) is Literal]
        return {"choices": tuple(dict.fromkeys(word for one in several for word in get_args(one)))}
    words = [word for other in options[1:] if get_origin(other) is Literal for word in get_args(other)]
    if words:
        return {"type": _word_or(words, kind), "metavar": f"{kind.__name__.upper()}|{'|'.join(words)}"}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": _or_none(kind) if optional else kind, "metavar": METAVARS.get(kind, "VALUE")}


def _alternatives(annotation: Any) -> tuple:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _word_or(words: list[str], kind: type):
    def convert(text: str):
        return text if text in words else kind(text)

    convert.__name__ = kind.__name__
    return convert


def _or_none(kind: type):
    def convert(text: str):
        return None if text == "none" else kind(text)

    convert.__name__ = getattr(kind, "__name__", "value")
    return convert
