"""Bad configs: types, ranges, unknown, twice, circles, names that are no names, files that are no YAML."""

import copy
import unicodedata
from pathlib import Path
from typing import Any

import yaml
from hostile.stage import CONFIG, Case

FILE = "config.yaml"
NAMES = "use letters, digits, '.', '_' and '-'"


def changed(path: str, value: Any) -> dict[str, Any]:
    """CONFIG with the value at a path (`a/b`) replaced; `...` removes it."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split("/")
    place = config
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    if value is ...:
        del place[last]
    return config


def value(path: str, given: Any, remedy: str, key: str | None = None) -> Case:
    """A value that cannot stand at its place."""

    def spoil() -> None:
        Path(FILE).write_text(
            yaml.safe_dump(changed(path, given), allow_unicode=False, sort_keys=False), encoding="utf-8"
        )

    return Case(spoil, FILE, key or path.replace("/", "."), remedy)


def name(section: str, given: str, remedy: str = NAMES, key: str | None = None) -> Case:
    """A second entry of a section under a bad name."""

    def spoil() -> None:
        config = copy.deepcopy(CONFIG)
        config[section][given] = next(iter(config[section].values()))
        Path(FILE).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    return Case(spoil, FILE, key or f"{section}.", remedy)


def text(content: str | bytes, key: str, remedy: str) -> Case:
    """A file that holds this."""
    raw = content if isinstance(content, bytes) else content.encode()
    return Case(lambda: Path(FILE).write_bytes(raw), FILE, key, remedy)


def more(**sections: Any) -> dict[str, Any]:
    """CONFIG with entries added to its sections."""
    return {**CONFIG, **{key: {**CONFIG.get(key, {}), **entries} for key, entries in sections.items()}}


def whole(config: dict[str, Any], key: str, remedy: str, lines: int = 1) -> Case:
    """A config as plain data."""
    return Case(lambda: Path(FILE).write_text(yaml.safe_dump(config)), FILE, key, remedy, lines=lines)


def files(key: str, remedy: str, **contents: str) -> Case:
    """Several files, `config.yaml` one of them."""

    def spoil() -> None:
        for stem, content in contents.items():
            Path(f"{stem}.yaml").write_text(content)

    return Case(spoil, FILE, key, remedy)


def loop() -> None:
    """A file that is included, and is a link to itself."""
    Path("loop.yaml").symlink_to("loop.yaml")
    Path(FILE).write_text("include: [loop.yaml]")


def chain() -> None:
    """Files that include one another, deeper than anybody would."""
    Path(FILE).write_text("include: [part0.yaml]")
    for k in range(400):
        Path(f"part{k}.yaml").write_text(f"include: [part{k + 1}.yaml]")


def as_folder() -> None:
    """A folder of the name of the config."""
    Path(FILE).unlink()
    Path(FILE).mkdir()


MIX = {"samples": 8}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new}\n  <<: [*{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
)
TWINS = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]

CASES = {
    # types
    "text for a number": value("calibrations/plain/samples", "many", "should be a valid integer (found 'many')"),
    "number for text": value("models/tiny/revision", 1234567, "should be a valid string (found 1234567)"),
    "yes for a number": value("cuts/n1/blocks", True, "should be a valid integer (found True)"),
    "text for a section": value("models", "tiny", "should be a valid dictionary (found 'tiny')"),
    "nothing for an entry": value("models/tiny", None, "should be a valid dictionary"),
    "list for text": value("calibrations/plain/dataset", ["text.jsonl"], "should be a valid string"),
    # ranges
    "below": value("calibrations/plain/samples", 0, "should be greater than or equal to 1 (found 0)"),
    "above": value("calibrations/plain/shards", 10**9, "should be less than or equal to 10000 (found 1000000000)"),
    "not a number": value("fits/ls/ridge_relative", float("nan"), "should be a finite number"),
    "infinite": value("fits/ls/ridge", float("inf"), "a number of at least 0, or auto, is needed"),
    "larger than a machine's integers": value("calibrations/plain/samples", 10**30, "use at most 2147483647"),
    "hundreds of digits": value("calibrations/plain/seed", 10**400, "use at most 2147483647"),
    "a seed that numpy refuses": value("evaluations/quiz/seed", 2**32, "use at most 2147483647"),
    "weights beyond numbers": whole(
        more(
            calibrations={"both": {"mix": {"plain": 1e308, "other": 1e308}}, "other": CONFIG["calibrations"]["plain"]}
        ),
        "calibrations.both.mix.",
        "should be less than or equal to",
        lines=2,
    ),
    # keys
    "unknown key": value("cuts/n1/bloks", 3, "did you mean 'blocks'?"),
    "unknown section": value("modles", {}, "did you mean 'models'?"),
    "missing key": value("models/tiny/source", ..., "missing; Folder of a safetensors checkpoint"),
    "key given twice": text("device: cpu\nmodels: {}\ndevice: cpu\n", "line 3: key 'device'", "keep one of them"),
    "name given twice": text("cuts:\n  n1: {blocks: 1}\n  n1: {blocks: 2}\n", "line 3: key 'n1'", "keep one of them"),
    "name of nothing": value("tables/main/fits", ["lss"], "is not defined under fits; defined: uidl, ls"),
    # circles
    "include of itself": files("include: includes itself", "break the circle", config="include: [config.yaml]"),
    "circle of includes": files(
        "include: includes itself",
        "break the circle",
        config="include: [a.yaml]",
        a="include: [b.yaml]",
        b="include: [config.yaml]",
    ),
    "link to itself": Case(loop, FILE, "include: loop.yaml", "cannot read"),
    "include of everything twice": files("include", "listed twice", config="include: [a.yaml, a.yaml]", a="cuts: {}"),
    "includes without end": Case(chain, FILE, "include:", "fewer"),
    "include of nothing": files("include: none.yaml", "no such file", config="include: [none.yaml]"),
    "include of a device": files("include: /dev/zero", "a config", config="include: [/dev/zero]"),
    "include with a NUL": files("include:", "cannot be seen", config='include: ["a\\0b"]'),
    "mix of itself": whole(
        more(calibrations={"a": {"mix": {"b": 1.0}, **MIX}, "b": {"mix": {"a": 1.0}, **MIX}}),
        "made of itself",
        "break the circle",
        lines=2,
    ),
    "prompts of itself": whole(
        more(calibrations={"a": {"prompts": "a", "generation": {"new_tokens": 4}}}),
        "calibrations.a: made of itself",
        "break the circle",
    ),
    # names
    "parent folder": name("models", ".."),
    "path upwards": name("models", "../up"),
    "path upwards from within": name("calibrations", "a/../../b"),
    "absolute path": name("tables", "/tmp/x"),
    "backslashes": name("cuts", "..\\up"),
    "hidden": name("fits", ".git"),
    "option": name("models", "-rf"),
    "nothing": name("models", ""),
    "newline": name("models", "a\nb"),
    "NUL": name("models", "a\0b"),
    "escape sequence": name("models", "\x1b[2J"),
    "right to left": name("models", "mo\u202eled"),
    "zero width": name("models", "ti\u200bny"),
    "accent, composed": name("models", TWINS[0]),
    "accent, decomposed": name("models", TWINS[1]),
    "Cyrillic": name("models", "t\u0456ny"),
    "only the case differs": name("models", "Tiny", "rename one", "models.Tiny: differs from 'tiny' only in case"),
    "too long for a file": name("models", "a" * 300, "at most 100 characters"),
    "file of the workflow": name("calibrations", "model.json", "choose another", "calibrations.model.json"),
    "page of the workflow": name("models", "provenance.html", "choose another", "models.provenance.html"),
    "folder of the workflow": name("models", "logs", "choose another", "models.logs: this name is reserved"),
    "table beside another": name("tables", "main.cost", "choose another", "tables.main.cost"),
    "task upwards": value("evaluations/quiz/tasks", {"../quiz": {}}, NAMES, "evaluations.quiz.tasks.../quiz"),
    # paths and other text
    "path with a NUL": value("models/tiny/source", "mo\0del", "write it without"),
    "path right to left": value("models/tiny/source", "mo\u202eled", "write it without"),
    "path with half a character": value("calibrations/plain/dataset", "text\ud800.jsonl", "write it without"),
    "path of two lines": value("models/tiny/source", "model\nreplaceme: error: x", "write it without"),
    "path too long for a file": value("models/tiny/source", "m" * 300, "at most 255 bytes"),
    "escape sequence in a caption": value("tables/main/caption", "\x1b]0;x\x07", "write it without"),
    # files
    "bomb of anchors": text(BOMB + "models: *i\n", "line", "write it out"),
    "bomb of merges": text(MERGES + "models: *r\n", "line", "write it out"),
    "anchor in itself": text("models: &a {x: *a}\n", "line 1", "write it out"),
    "object of Python": text("device: !!python/object/apply:os.system ['touch ran']\n", "line 1", "plain YAML"),
    "function of Python": text("device: !!python/name:os.system\n", "line 1", "plain YAML"),
    "not UTF-8": text(b"device: \xff\n", "(byte 8)", "save it as UTF-8"),
    "UTF-16": text("device: cpu\n".encode("utf-16"), "(UTF-16)", "save it as UTF-8"),
    "tab": text("models:\n\ttiny: {}\n", "line 2", "plain YAML"),
    "two documents": text("device: cpu\n---\ndevice: cpu\n", "line 2", "plain YAML"),
    "nested without end": text("[" * 1500, "nested too deeply", "plain YAML"),
    "number of 5000 digits": text("device: " + "9" * 5000, "not valid YAML", "plain YAML"),
    "empty": text("", "empty", "sections"),
    "list": text("- models\n", "found a list", "sections"),
    "megabytes": text("a: b\n#" + "x" * 3_000_000, "larger than", "is it a config?"),
    "folder": Case(as_folder, FILE, "Is a directory", "a file is needed"),
    "missing": Case(lambda: Path(FILE).unlink(), FILE, "no such file", "give the path of a config"),
}
