"""Write the `--help` of a command: the options that most people use, or all of them."""

import argparse
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence

from replaceme.core.terminal import Style
from replaceme.steps.short_help import EXAMPLES, SHORT

Paint = Callable[[str, Style], str]

MANY = 16  # options; of commands with more `--help` shows some
WIDEST = 100  # characters of a line
COLUMN = 26  # characters of an option and its value before its description, longer ones have a line of their own
IN_BRACES = 30  # characters of choices that stand in place of a value, more are listed in the description


def plain(text: str, style: Style) -> str:
    """Return the text unchanged."""
    return text


def usage(parser: argparse.ArgumentParser, paint: Paint = plain) -> str:
    """Return the lines that say how the command is called: its arguments, and that there are options."""
    start = f"usage: {parser.prog} "
    words = [_values(one) for one in parser._actions if not one.option_strings]
    words += [_label(one) for one in parser._actions if one.option_strings and one.required]
    # an option and its value stay on one line
    text = parser.usage or f"{parser.prog} " + _wrapped(
        " ".join(word.replace(" ", "\xa0") for word in [*words, "[options]"]), " " * len(start)
    ).replace("\xa0", " ")
    return f"{paint('usage:', 'heading')} {text}\n"


def command_help(parser: argparse.ArgumentParser, full: bool, paint: Paint = plain) -> str:
    """Return the whole help of a command; with `full` every option and its whole description."""
    command = parser.prog.split()[-1]
    short = not full and len(_options(parser)) > MANY
    parts = [usage(parser, paint), f"{_wrapped(parser.description)}\n"]
    hidden = 0
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        shown = sorted((one for one in actions if not short or _is_short(one)), key=lambda one: not one.required)
        hidden += len(actions) - len(shown)
        rows = [_row(_label(one), _said(one, short), paint) for one in shown]
        if rows:
            parts.append("\n".join([paint(f"{group.title}:", "heading"), *rows, ""]))
    if not full and command in EXAMPLES:
        parts.append(examples(EXAMPLES[command], paint))
    if hidden:
        parts.append(f"{hidden} more options: `{parser.prog} --help-all`\n")
    return "\n".join(parts)


def overview(parser: argparse.ArgumentParser, groups: dict[str, dict[str, str]], paint: Paint = plain) -> str:
    """Return the help of the program: its commands in groups, a line each."""
    parts = [f"{paint('usage:', 'heading')} {parser.prog} COMMAND ...\n", f"{_wrapped(parser.description)}\n"]
    for title, commands in groups.items():
        rows = [_row(name, line, paint, 12) for name, line in commands.items()]
        parts.append("\n".join([paint(f"{title}:", "heading"), *rows, ""]))
    parts.append(f"{_wrapped(parser.epilog)}\n")
    parts.append(examples(EXAMPLES[parser.prog], paint))
    return "\n".join(parts)


def examples(lines: Sequence[str], paint: Paint) -> str:
    """Return commands to copy, unchanged."""
    return "\n".join([paint("for example:", "heading"), *(f"  {line}" for line in lines), ""])


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [one for one in parser._actions if one.option_strings and one.help != argparse.SUPPRESS]


def _is_short(action: argparse.Action) -> bool:
    """Return whether short help shows an option: all of the command's own that are not rare, and those of config
    sections that are in SHORT.
    """
    if getattr(action, "rare", False):
        return False
    return not hasattr(action, "section") or action.required or action.dest in SHORT.get(action.section.__name__, {})


def _said(action: argparse.Action, short: bool) -> str:
    """Return the text of an option's help: its short line, or its whole description; with its choices and its
    default.
    """
    said, default = (action.help or "") % vars(action), ""
    section = getattr(action, "section", None)
    if section is None:
        said = _sentence(said)
    else:
        from replaceme.config.command_line import default_of  # the command has imported it; it takes long

        default = default_of(section.model_fields[action.dest])
        said = (short and SHORT.get(section.__name__, {}).get(action.dest)) or said
    choices = [str(one) for one in action.choices or ()]
    listed = "" if _braces(action) or all(one in said for one in choices) else f"One of {', '.join(choices)}."
    return " ".join(filter(None, (said, listed, default)))


def _sentence(text: str) -> str:
    """Return the text with a capital, unless it begins with a name, and a full stop."""
    first = text.partition(" ")[0].rstrip(":,")
    text = text[:1].upper() + text[1:] if first.isalpha() else text
    return text if text.endswith((".", "'")) or not text else f"{text}."


def _braces(action: argparse.Action) -> str | None:
    """Return the choices of an option in braces, where they are few."""
    braces = f"{{{','.join(map(str, action.choices or ()))}}}"
    return braces if action.choices and len(braces) <= IN_BRACES else None


def _label(action: argparse.Action) -> str:
    """Return an option as it is written, with its value; or the name of an argument."""
    if not action.option_strings:
        return _name(action)
    return f"{', '.join(action.option_strings)} {_values(action)}".strip()


def _name(action: argparse.Action) -> str:
    listed = "NAME" if action.choices and action.option_strings else action.dest.upper()
    return action.metavar or _braces(action) or listed


def _values(action: argparse.Action) -> str:
    """Return the values of an option or an argument: `INT`, `[FILE ...]`."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return ""
    name = _name(action)
    forms = {"?": "[{0}]", "*": "[{0} ...]", "+": "{0} [{0} ...]"}
    return forms.get(action.nargs, "{0}").format(name)


def _row(label: str, text: str, paint: Paint, column: int = COLUMN) -> str:
    """Return a line of a list, or more where its text is long."""
    indent = " " * (column + 4)
    lines = list(_lines(text, indent))
    name, _, value = label.partition(" ")
    painted = f"  {paint(name, 'name')}{f' {value}' if value else ''}"
    if len(label) > column:
        return "\n".join([painted, *lines])
    first = painted + " " * (column + 2 - len(label)) + (lines[0].removeprefix(indent) if lines else "")
    return "\n".join([first.rstrip(), *lines[1:]])


def _wrapped(text: str, indent: str = "") -> str:
    return "\n".join(_lines(text, indent)).removeprefix(indent)


def _lines(text: str, indent: str) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns - 1, WIDEST)
    yield from textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
