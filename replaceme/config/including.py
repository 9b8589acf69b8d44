"""Merge config files that include others (`include`): the sections of several files as those of one.

Works on plain data: sections are validated once, after merging.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replaceme.config.base import expanded
from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.yaml_file import read_yaml

# not sections of names but settings of a whole run: those of an included file cannot hold for its part alone
SETTINGS = ("device", "speed", "cost")
# what a file says of itself
OWN = ("include", "default")
# what plain `snakemake` makes of the first file, unless it says so
MADE = ("tables", "figures")
DEEPEST = 20  # files that include one another


@dataclass(frozen=True)
class ConfigFiles:
    """Sections of a config file and all its includes, the files in order, and their disagreements."""

    sections: Any
    files: list[Path]
    problems: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Names of the files, for messages."""
        return " + ".join(map(str, self.files))


def read_config(path: str | Path) -> ConfigFiles:
    """Read a config file with all its includes; raises ReplaceMeError with a line for each unreadable file."""
    reader = _Reader()
    found = reader.read(Path(path), ())
    if reader.unreadable:
        raise ReplaceMeError("\n".join(dict.fromkeys(reader.unreadable)))
    return found


class _Reader:
    """Reads each file once, however many others include it; `unreadable` collects errors."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self._found: dict[str, ConfigFiles] = {}

    def read(self, path: Path, including: tuple[Path, ...]) -> ConfigFiles:
        """Return the sections of a file and all its includes; `including` is the chain of files that leads to it."""
        chain, place = (*including, path), os.path.realpath(path)
        if place in map(os.path.realpath, including):
            circle = " -> ".join(map(str, chain))
            self.unreadable.append(f"{chain[-2]}: include: includes itself ({circle}); break the circle")
            return ConfigFiles({}, [path])
        if len(chain) > DEEPEST:
            self.unreadable.append(
                f"{chain[0]}: include: more than {DEEPEST} files deep; include fewer from one another"
            )
            return ConfigFiles({}, [path])
        if place not in self._found:
            self._found[place] = self._read(path, chain)
        return self._found[place]

    def _read(self, path: Path, chain: tuple[Path, ...]) -> ConfigFiles:
        try:
            raw = read_yaml(path)
        except ReplaceMeError as error:
            named = f"{chain[-2]}: include: " if len(chain) > 1 else ""
            self.unreadable.append(f"{named}{error}")
            return ConfigFiles({}, [path])
        if not isinstance(raw, dict):
            if len(chain) > 1:
                self.unreadable.append(f"{path}: expected a mapping of sections, found {kind_of(raw)}")
                raw = {}
            return ConfigFiles(raw, [path])
        names = raw.get("include", [])
        problem = _problem(names)
        if problem:
            self.unreadable.append(f"{path}: include: {problem}")
            return ConfigFiles({}, [path])
        whole = ConfigFiles({key: value for key, value in raw.items() if key != "include"}, [path])
        for name in names:
            whole = _joined(whole, self.read(Path(os.path.normpath(path.parent / expanded(name))), chain))
        own = [name for section in MADE if isinstance(raw.get(section), dict) for name in raw[section]]
        if names and own:
            whole.sections.setdefault("default", own)
        return whole


def _problem(names: Any) -> str | None:
    """Return the fault of a list of files to include, if any."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"a list of files is needed (found {printable(names)})"
    hidden = next((name for name in names if not name.isprintable()), None)
    if hidden is not None:
        return f"{hidden!r} holds what cannot be seen; write it without"
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"{twice!r} is listed twice; keep one of them"


def kind_of(raw: Any) -> str:
    """Describe a file's content that is not sections, with the remedy."""
    kinds = {dict: "a mapping", list: "a list", type(None): "nothing: it is empty"}
    return f"{kinds.get(type(raw), type(raw).__name__)}; write `models:` and the other sections (docs/config.md)"


def _joined(whole: ConfigFiles, added: ConfigFiles) -> ConfigFiles:
    """Return the sections of both; where both define a name, the value of `whole`, the including one, counts."""
    sections, problems = dict(whole.sections), [*whole.problems, *added.problems]
    for key, value in added.sections.items():
        if key in OWN:
            continue
        if key in SETTINGS:
            if sections.get(key) != value:
                problems.append(f"{key}: {added.origin} sets it for itself; give the same value here, or drop it there")
        elif isinstance(value, dict) and isinstance(sections.get(key), dict):
            sections[key] = {**sections[key], **{name: one for name, one in value.items() if name not in sections[key]}}
        elif sections.setdefault(key, value) != value:
            problems.append(f"{printable(key)}: {added.origin} defines it otherwise; give it the same value")
    files = [*whole.files, *(file for file in added.files if file not in whole.files)]
    return ConfigFiles(sections, files, problems)
