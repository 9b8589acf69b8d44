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
    """Return CONFIG with the value at a path (`a/b`) replaced; `...` removes it."""
    config = copy.deepcopy(CONFIG)
    _change(config, path, value)
    return config


def _change(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    place = config
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    if value is ...:
        del place[last]


def value(path: str, given: Any, remedy: str, key: str | None = None) -> Case:
    """Return a value that cannot stand at its place."""

    def spoil() -> None:
        Path(FILE).write_text(
            yaml.safe_dump(changed(path, given), allow_unicode=False, sort_keys=False), encoding="utf-8"
        )

    return Case(spoil, FILE, key or path.replace("/", "."), remedy)


def values(*faults: tuple[str, Any, str] | tuple[str, Any, str, str]) -> Case:
    """Return values that cannot stand at their places, all in one file: (path, value, remedy), the key if it is
    another.
    """

    def spoil() -> None:
        config = copy.deepcopy(CONFIG)
        for path, given, *_ in faults:
            _change(config, path, given)
        Path(FILE).write_text(yaml.safe_dump(config, allow_unicode=False, sort_keys=False), encoding="utf-8")

    (key, remedy), *others = [(key[0] if key else path.replace("/", "."), remedy) for path, _, remedy, *key in faults]
    return Case(spoil, FILE, key, remedy, others=tuple(others))


def names(*given: str) -> Case:
    """Return models under names that cannot be, all in one file."""

    def spoil() -> None:
        config = copy.deepcopy(CONFIG)
        config["models"] |= dict.fromkeys(given, config["models"]["tiny"])
        Path(FILE).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    return Case(spoil, FILE, "models.", NAMES, lines=len(given))


def name(section: str, given: str, remedy: str = NAMES, key: str | None = None) -> Case:
    """Return a second entry of a section under a bad name."""

    def spoil() -> None:
        config = copy.deepcopy(CONFIG)
        config[section][given] = next(iter(config[section].values()))
        Path(FILE).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    return Case(spoil, FILE, key or f"{section}.", remedy)


def text(content: str | bytes, key: str, remedy: str) -> Case:
    """Return a file that holds this."""
    raw = content if isinstance(content, bytes) else content.encode()
    return Case(lambda: Path(FILE).write_bytes(raw), FILE, key, remedy)


def more(**sections: Any) -> dict[str, Any]:
    """Return CONFIG with entries added to its sections."""
    return {**CONFIG, **{key: {**CONFIG.get(key, {}), **entries} for key, entries in sections.items()}}


def whole(config: dict[str, Any], key: str, remedy: str, lines: int = 1) -> Case:
    """Return a config as plain data."""
    return Case(lambda: Path(FILE).write_text(yaml.safe_dump(config)), FILE, key, remedy, lines=lines)


def files(key: str, remedy: str, **contents: str) -> Case:
    """Return several files, `config.yaml` one of them."""

    def spoil() -> None:
        for stem, content in contents.items():
            Path(f"{stem}.yaml").write_text(content)

    return Case(spoil, FILE, key, remedy)


def loop() -> None:
    """Include a file that is a link to itself."""
    Path("loop.yaml").symlink_to("loop.yaml")
    Path(FILE).write_text("include: [loop.yaml]")


def chain() -> None:
    """Write files that include one another, deeper than allowed."""
    Path(FILE).write_text("include: [part0.yaml]")
    for k in range(400):
        Path(f"part{k}.yaml").write_text(f"include: [part{k + 1}.yaml]")


def as_folder() -> None:
    """Make a folder of the name of the config."""
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
    "types": values(
        ("calibrations/plain/samples", "many", "should be a valid integer, or auto (found 'many')"),
        ("models/tiny/revision", 1234567, "should be a valid string (found 1234567)"),
        ("cuts/n1/blocks", True, "should be a valid integer (found True)"),
        ("models/other", None, "should be a valid dictionary"),
        ("calibrations/plain/dataset", ["text.jsonl"], "should be a valid string"),
    ),
    "text for a section": value("models", "tiny", "should be a valid dictionary (found 'tiny')"),
    "ranges": values(
        ("calibrations/plain/samples", 0, "should be greater than or equal to 1 (found 0)"),
        ("calibrations/plain/shards", 10**9, "should be less than or equal to 10000 (found 1000000000)"),
        ("fits/ls/ridge_relative", float("nan"), "should be a finite number"),
        ("fits/ls/ridge", float("inf"), "a number of at least 0, or auto, is needed"),
        ("calibrations/plain/tokens", 10**30, "use at most 2147483647"),
        ("calibrations/plain/seed", 10**400, "use at most 2147483647"),
        ("evaluations/quiz/seed", 2**32, "use at most 2147483647"),
    ),
    "weights beyond numbers": whole(
        more(
            calibrations={"both": {"mix": {"plain": 1e308, "other": 1e308}}, "other": CONFIG["calibrations"]["plain"]}
        ),
        "calibrations.both.mix.",
        "should be less than or equal to",
        lines=2,
    ),
    # keys
    "keys": values(
        ("cuts/n1/bloks", 3, "did you mean 'blocks'?"),
        ("modles", {}, "did you mean 'models'?"),
        ("models/tiny/source", ..., "missing; Folder of a safetensors checkpoint"),
    ),
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
    "names that are none": names(
        "..",
        "../up",
        "a/../../b",
        "/tmp/x",
        "..\\up",
        ".git",
        "-rf",
        "",
        "a\nb",
        "a\0b",
        "\x1b[2J",
        "mo\u202eled",
        "ti\u200bny",
        *TWINS,
        "t\u0456ny",
    ),
    "a name upwards in each section": values(
        *(
            (f"{section}/..", next(iter(CONFIG[section].values())), NAMES, f"{section}...")
            for section in ("calibrations", "cuts", "fits", "tables")
        )
    ),
    "only the case differs": name("models", "Tiny", "rename one", "models.Tiny: differs from 'tiny' only in case"),
    "too long for a file": name("models", "a" * 300, "at most 100 characters"),
    "file of the workflow": name("calibrations", "model.json", "choose another", "calibrations.model.json"),
    "page of the workflow": name("models", "provenance.html", "choose another", "models.provenance.html"),
    "folder of the workflow": name("models", "logs", "choose another", "models.logs: this name is reserved"),
    "table beside another": name("tables", "main.cost", "choose another", "tables.main.cost"),
    "task upwards": value("evaluations/quiz/tasks", {"../quiz": {}}, NAMES, "evaluations.quiz.tasks.../quiz"),
    # paths and other text
    "paths and other text": values(
        ("models/tiny/source", "mo\0del", "write it without"),
        ("models/a/source", "mo\u202eled", "write it without"),
        ("calibrations/plain/dataset", "text\ud800.jsonl", "write it without"),
        ("models/b/source", "model\nreplaceme: error: x", "write it without"),
        ("models/c/source", "m" * 300, "at most 255 bytes"),
        ("tables/main/caption", "\x1b]0;x\x07", "write it without"),
    ),
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
    "nested without end": text("[" * 500, "nested too deeply", "plain YAML"),
    "number of 5000 digits": text("device: " + "9" * 5000, "not valid YAML", "plain YAML"),
    "empty": text("", "empty", "sections"),
    "list": text("- models\n", "found a list", "sections"),
    "megabytes": text("a: b\n#" + "x" * 3_000_000, "larger than", "is it a config?"),
    "folder": Case(as_folder, FILE, "Is a directory", "a file is needed"),
    "missing": Case(lambda: Path(FILE).unlink(), FILE, "no such file", "give the path of a config"),
}
