"""Compare results with their records: recompute hashes of inputs and outputs, and compare versions.

The records are those of `job_record`, and the lists of files in model.json and replaceme.json. The check goes back from
the given files through all their sources, as far as records reach. Models whose weights were removed after their last
use are compared without them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, each_sha256, read_json
from replaceme.core.progress import progress
from replaceme.models.checkpoints import local_folder, names_folder
from replaceme.models.model_record import DEQUANTISED
from replaceme.models.other_formats import is_gguf
from replaceme.models.removed_weights import are_removed, check_not_removed
from replaceme.provenance.job_record import FOLDER

MODEL = "model.json"
MISSING = "missing"
SHOWN = 12  # hex digits of a hash


@dataclass(frozen=True)
class Difference:
    """A file that differs from its record; `recorded` and `found` are SHA-256, or `missing`."""

    file: str
    recorded: str
    found: str
    record: str
    role: str

    @property
    def line(self) -> str:
        """The difference in one line."""
        found = self.found if self.found == MISSING else f"is {self.found[:SHOWN]}"
        return f"{self.file}: {found}, recorded {self.recorded[:SHOWN]} as {self.role} in {self.record}"


@dataclass(frozen=True)
class OtherVersion:
    """A package whose version in a record is not the installed one."""

    package: str
    recorded: str
    installed: str
    records: int

    @property
    def line(self) -> str:
        """The difference in one line."""
        return f"{self.package}: {self.recorded} in {self.records} records, {self.installed} here"


@dataclass
class Audit:
    """The compared files, the differences found, and the models without their weights."""

    files: int = 0
    records: int = 0
    removed: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    versions: list[OtherVersion] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """All differences, one line each."""
        return [one.line for one in chain(self.differences, self.versions)]


@dataclass(frozen=True)
class _Claim:
    """A record's claim that a file has this hash."""

    path: Path
    digest: str
    record: Path
    role: str


def audit(path: str | Path) -> Audit:
    """Recompute the hashes of a file or a folder of results and of everything behind it; compare the versions.

    `path`: a results folder of the workflow or anything in it, or a checkpoint or model.json made by itself. Raises
    ReplaceMeError when there is no such path, nothing is recorded of it, or it is a model without its weights.
    """
    path = Path(path)
    if not path.exists():
        raise ReplaceMeError(f"{path}: no such file or folder; give one of a run's results")
    check_not_removed(path)
    root = _root(path)
    records = {} if root is None else _behind(path, root)
    claims = list(chain.from_iterable(_of_record(record, where, root) for where, record in records.items()))
    if not claims:  # made without the workflow
        claims = list(chain.from_iterable(_of_list(one, Path()) for one in _lists_at(path)))
    base = Path() if root is None else root.parent
    for listed in {one.path for one in claims if one.path.name in (MODEL, RECORD) and one.path.is_file()}:
        claims += _of_list(listed, base)
    if not claims:
        raise ReplaceMeError(f"{path}: nothing is recorded of it; the workflow records what it makes under results/")
    stamps = [record["versions"] for record in records.values()] or [_versions_at(one) for one in _lists_at(path)]
    removed = _removed(one.path for one in claims)
    claims = [one for one in claims if one.path not in removed]
    found = _hashed({one.path for one in claims})
    differences = [
        Difference(str(one.path), one.digest, found[one.path], str(one.record), one.role)
        for one in sorted(set(claims), key=lambda one: (str(one.path), str(one.record), one.role))
        if found[one.path] != one.digest
    ]
    models = sorted({str(folder) for folder in removed.values()})
    return Audit(len(found), len(records), models, differences, other_versions(stamps))


def other_versions(stamps: Iterable[Mapping[str, str]]) -> list[OtherVersion]:
    """Return the versions in `stamps` that differ from the installed ones."""
    import platform

    counts: dict[tuple[str, str], int] = {}
    for stamp in stamps:
        for item in stamp.items():
            counts[item] = counts.get(item, 0) + 1
    found = []
    for (package, recorded), records in sorted(counts.items()):
        try:
            installed = platform.python_version() if package == "python" else version(package)
        except PackageNotFoundError:
            installed = "not installed"
        if installed != recorded:
            found.append(OtherVersion(package, recorded, installed, records))
    return found


def _root(path: Path) -> Path | None:
    """Return the results folder with records of steps that contains a path, if any."""
    absolute = path.absolute()
    return next((one for one in (absolute, *absolute.parents) if any(map(_is_ours, _records(one)))), None)


def _records(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).rglob("*.json") if path.is_file())


def _is_ours(where: Path) -> bool:
    """Return whether a file is the record of a step: other programs have folders of this name too."""
    try:
        return _is_of_step(read_json(where))
    except ReplaceMeError:
        return False


def _is_of_step(record: Any) -> bool:
    if not isinstance(record, dict) or "step" not in record:
        return False
    return all(isinstance(record.get(key), dict) for key in ("inputs", "outputs", "versions"))


def _behind(path: Path, root: Path) -> dict[Path, dict[str, Any]]:
    """Return the records of the files at a path, and of everything behind them."""
    records = {where: record for where in _records(root) if _is_of_step(record := read_json(where))}
    makers = {_at(place, root): where for where, record in records.items() for place in record["outputs"]}
    asked = path.absolute()
    pending = [where for made, where in makers.items() if made == asked or made.is_relative_to(asked)]
    found: dict[Path, dict[str, Any]] = {}
    while pending:
        where = pending.pop()
        if where not in found:
            found[where] = records[where]
            pending += [makers[used] for place in records[where]["inputs"] if (used := _at(place, root)) in makers]
    return found


def _at(place: str, root: Path) -> Path:
    """Return the path of a place in a record; `..` is the folder that the results lie in."""
    path = Path(place)
    if path.parts[:1] == ("..",):
        return root.parent.joinpath(*path.parts[1:])
    return root / path


def _of_record(record: dict[str, Any], where: Path, root: Path) -> Iterator[_Claim]:
    for role, key in (("output", "outputs"), ("input", "inputs")):
        for place, digest in record[key].items():
            yield _Claim(_at(place, root), digest, where, f"{role} of {record['step']}")


def _lists_at(path: Path) -> list[Path]:
    """Return the lists of files that a path is, or whose checkpoint it is."""
    lists = [path] if path.name in (MODEL, RECORD) else [path / RECORD]
    return [one.absolute() for one in lists if one.is_file()]


def _of_list(where: Path, base: Path) -> Iterator[_Claim]:
    """Yield the claims of a model.json about a model, or of a replaceme.json about its checkpoint and source.

    Relative paths in it are from `base`, where the workflow ran.
    """
    record = read_json(where)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise ReplaceMeError(f"{where}: no list of files; make it again")
    folder = where.parent if where.name == RECORD else base / record["folder"]
    yield from (_Claim((folder / name).absolute(), digest, where, "file") for name, digest in record["files"].items())
    for source in _sources(record):
        if _is_found(source["source"], base):
            folder = base / local_folder(source["source"])
            folder = folder.parent if is_gguf(folder) else folder
            yield from (
                _Claim((folder / name).absolute(), digest, where, "file of the source")
                for name, digest in source["files"].items()
            )


def _sources(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a record says of its source, and of the quantised files whose plain weights that is.

    `prune` names the quantised ones as the source, and keeps no plain weights.
    """
    source = record["source"] if isinstance(record.get("source"), dict) else {}
    packed = source.get(DEQUANTISED) or record.get(DEQUANTISED)
    if source and (packed is None or packed["source"] != source["source"]):
        yield source
    if packed is not None:
        yield packed


def _is_found(source: str, base: Path) -> bool:
    """Return whether a source is a folder of this machine with a known place: outside `base` only its name is
    recorded.
    """
    return names_folder(source) and ("/" in source or (base / source).is_dir())


def _versions_at(where: Path) -> dict[str, str]:
    return read_json(where).get("versions", {})


def _removed(paths: Iterable[Path]) -> dict[Path, Path]:
    """Return the weights among some paths that are not there because those of their models were removed, with the
    folders of these.
    """
    missing = [path for path in paths if path.suffix == ".safetensors" and not path.is_file()]
    # some weights lie in a subfolder
    folders = {folder: are_removed(folder) for folder in {parent for path in missing for parent in path.parents[:2]}}
    return {path: folder for path in missing for folder in path.parents[:2] if folders[folder]}


def _hashed(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the hash of each file, or `missing`."""
    paths = sorted(paths)
    there = [path for path in paths if path.is_file()]
    digests = progress(each_sha256(there), "hashing files", len(there))
    return dict.fromkeys(paths, MISSING) | dict(zip(there, digests, strict=True))
