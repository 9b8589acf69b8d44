"""Config files that include others (`include`): the sections of several files as those of one.

Works on plain data: what a section may hold is checked once, on the whole.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replaceme.errors import ReplaceMeError, printable
from replaceme.yaml_file import read_yaml

# not sections of names but settings of a whole run: those of an included file cannot hold for its part alone
SETTINGS = ("device", "speed", "cost")
# what a file says of itself
OWN = ("include", "default")
# what plain `snakemake` makes of the first file, unless it says so
MADE = ("tables", "figures")


@dataclass(frozen=True)
class ConfigFiles:
    """Sections of a config file and of all that it includes, the files in order, and what they disagree on."""

    sections: Any
    files: list[Path]
    problems: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """The files, for messages."""
        return " + ".join(map(str, self.files))


def read_config(path: str | Path) -> ConfigFiles:
    """Read a config file with all that it includes; raises ReplaceMeError with a line for each file that cannot be."""
    unreadable: list[str] = []
    found = _read(Path(path), (), unreadable)
    if unreadable:
        raise ReplaceMeError("\n".join(dict.fromkeys(unreadable)))
    return found


def _read(path: Path, including: tuple[Path, ...], unreadable: list[str]) -> ConfigFiles:
    """Read one file; `including` leads to it from the first one, and `unreadable` takes what cannot be read."""
    chain = (*including, path)
    if path.resolve() in [one.resolve() for one in including]:
        unreadable.append(f"{chain[-2]}: include: includes itself ({' -> '.join(map(str, chain))}); break the circle")
        return ConfigFiles({}, [path])
    try:
        raw = read_yaml(path)
    except ReplaceMeError as error:
        named = f"{including[-1]}: include: " if including else ""
        unreadable.append(f"{named}{error}")
        return ConfigFiles({}, [path])
    if not isinstance(raw, dict):
        if including:
            unreadable.append(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
            raw = {}
        return ConfigFiles(raw, [path])
    names = raw.get("include", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        unreadable.append(f"{path}: include: a list of files is needed (found {printable(names)})")
        return ConfigFiles({}, [path])
    whole = ConfigFiles({key: value for key, value in raw.items() if key != "include"}, [path])
    for name in names:
        whole = _joined(whole, _read(Path(os.path.normpath(path.parent / name)), chain, unreadable))
    own = [name for section in MADE if isinstance(raw.get(section), dict) for name in raw[section]]
    if names and own:
        whole.sections.setdefault("default", own)
    return whole


def _joined(whole: ConfigFiles, added: ConfigFiles) -> ConfigFiles:
    """Sections of both; a name that both define keeps the value of `whole`, which includes the other."""
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
