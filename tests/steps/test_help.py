"""`--help` in a terminal's width: the commands in groups, what most people use of a command, all of it on request."""

import argparse
import importlib
import re
import shlex

import pytest

from replaceme.cli import main
from replaceme.steps import short_help
from replaceme.steps.help import MANY, plain, usage
from replaceme.steps.index import GROUPS, STEPS
from replaceme.steps.parser import Parser

ESCAPE = "\x1b["
LONG = ("candidates", "cut", "fit", "generate", "heal", "prune")


def parser_of(step):
    parser = Parser(f"replaceme {step}", STEPS[step])
    importlib.import_module(f"replaceme.steps.{step}").arguments(parser)
    return parser


def options(parser):
    return [one for one in parser._actions if one.option_strings and one.help != argparse.SUPPRESS]


@pytest.fixture
def shown(capsys, monkeypatch):
    """What a command line prints on the way out, on a terminal or into a pipe."""

    def show(*words, terminal=False, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(f"sys.{stream}.isatty", lambda: terminal)
        with pytest.raises(SystemExit):
            main(list(words))
        printed = capsys.readouterr()
        return printed.out + printed.err

    return show


def test_commands_of_people_come_first(shown):
    text = shown("--help")
    assert re.findall(r"^  ([a-z]+)  +[A-Z]", text, re.MULTILINE) == list(STEPS)
    assert next(iter(STEPS)) == "prune" and [text.index(f"{title}:") for title in GROUPS]
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert text.count("  replaceme ") == 2 and "--help-all" in text


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("step", STEPS)
def test_no_line_is_wider_than_the_terminal(shown, step, columns):
    for words in ("--help", "--help-all"):
        text = shown(step, words, columns=columns)
        assert [line for line in text.splitlines() if len(line) > columns] == []


def test_commands_of_many_options_show_some():
    assert sorted(step for step in STEPS if len(options(parser_of(step))) > MANY) == sorted(LONG)


@pytest.mark.parametrize("step", LONG)
def test_help_is_short_and_says_how_much_more_there_is(shown, step):
    names = [one.option_strings[0] for one in options(parser_of(step))]
    text, full = shown(step, "--help"), shown(step, "--help-all")
    seen = [name for name in names if re.search(rf"^  {name}\b(?!-)", text, re.MULTILINE)]
    assert 5 < len(seen) < 20
    assert text.endswith(f"\n{len(names) - len(seen)} more options: `replaceme {step} --help-all`\n")
    assert all(re.search(rf"^  {name}\b(?!-)", full, re.MULTILINE) for name in names)


def test_prune_shows_what_people_use(shown):
    text = shown("prune", "--help")
    wanted = "SOURCE --out --dataset --images --samples --tokens --blocks --ratio --objective --device --no-verify"
    assert [word for word in wanted.split() if f"\n  {word} " not in text] == []
    assert "--l1-alpha" not in text and "\n  --samples INT|auto          How many" in text
    assert text.startswith("usage: replaceme prune SOURCE --out PATH [options]\n")


def test_choices_are_listed_once_and_never_in_a_line_of_their_own_length(shown):
    text = " ".join(shown("prune", "--help-all").split())
    assert "--device {auto,cpu,cuda} " in text and "One of auto, bfloat16, float16, float32, float64. Def" in text
    assert "--metric NAME The choice minimises one of these" in text and "{cosine," not in text


def test_every_short_line_is_of_an_option():
    from replaceme.config import calibrations, cuts, fits, healings

    for section, lines in short_help.SHORT.items():
        [schema] = {getattr(module, section, None) for module in (calibrations, cuts, fits, healings)} - {None}
        assert lines.keys() <= schema.model_fields.keys()


@pytest.mark.parametrize("name", short_help.EXAMPLES)
def test_examples_can_be_parsed(name):
    commands = "\n".join(short_help.EXAMPLES[name]).replace("\\\n", " ").splitlines()
    for words in [shlex.split(line, comments=True) for line in commands]:
        if words:
            assert words[0] == "replaceme" and parser_of(words[1]).parse_args(words[2:])


def test_usage_of_every_kind_of_argument():
    parser = Parser("p", "d")
    for name, how in {"one": {}, "two": {"nargs": "+"}, "three": {"nargs": "*"}, "four": {"nargs": "?"}}.items():
        parser.add_argument(name, metavar=name.upper(), **how)
    parser.add_argument("--out", required=True, metavar="PATH")
    assert usage(parser, plain) == "usage: p ONE TWO [TWO ...] [THREE ...] [FOUR] --out PATH [options]\n"


def test_colours_are_for_terminals(shown, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for words in (["--help"], ["prune", "--help"], ["prune", "m", "--blcks", "2"]):
        coloured = shown(*words, terminal=True)
        assert ESCAPE in coloured
        plainly = shown(*words)
        assert ESCAPE not in plainly and re.sub(r"\x1b\[[\d;]*m", "", coloured) == plainly
        for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert shown(*words, terminal=True) == plainly
