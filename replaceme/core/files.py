"""Reading and writing results so that a crash at any moment leaves nothing half-written.

Every output goes to a sibling temporary path, is synced (but rows), and is renamed into place; a reader therefore sees
the old file, the new file or none. Tensors are safetensors, everything else is JSON or text.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.digests import MISMATCH, sealed, tensor_digests, unsealed, with_digest, without_digest
from replaceme.core.errors import DamagedError, ReplaceMeError, printable

if TYPE_CHECKING:
    import torch

RESULTS_VARIABLE = "REPLACEME_RESULTS"  # of the environment: where the results of a workflow lie; by hand not set
TEMPORARY = ".tmp-"
RECORD = "replaceme.json"  # of a checkpoint made here, in its folder
AHEAD = 2_000_000_000  # ns that the clocks of a file server and of this machine may lie apart
STAMP = "replaceme"  # key of what a safetensors file of ours says of itself
CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip


@dataclass
class Noted:
    """The paths that this process has read and written through this module, for the record of a step (`job_record`).

    `read` has the state of each when it was first read.
    """

    read: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    written: set[Path] = field(default_factory=set)

    def clear(self) -> None:
        """Forget all paths."""
        self.read.clear()
        self.written.clear()


_together = Noted()
_apart: ContextVar[Noted | None] = ContextVar("apart", default=None)  # of this thread


def noted() -> Noted:
    """Return what was noted so far: in the innermost `noting_apart` of this thread, else by the process."""
    return _apart.get() or _together


@contextlib.contextmanager
def noting_apart(further: Noted | None = None) -> Iterator[Noted]:
    """Note what the block reads and writes in another object, a new one or that of an earlier block, and yield it; what
    its threads do is not.
    """
    found = further or Noted()
    before = _apart.set(found)
    try:
        yield found
    finally:
        _apart.reset(before)


def note_read(path: str | Path) -> None:
    """Note that a file is about to be read by other means than this module."""
    path = Path(path).absolute()
    if path not in noted().read:
        noted().read[path] = state_of(path)


def state_of(path: Path) -> tuple[int, int] | None:
    """Return a file's size in bytes and time of change in ns, which reveal an edit; None: no such file."""
    try:
        found = path.stat()
    except OSError:  # whoever reads it says so
        return None
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def replacing(path: str | Path, synced: bool = True) -> Iterator[Path]:
    """Yield a sibling temporary path for a file or a folder and rename it to `path` when the block succeeds.

    `synced`: the disk has it before that; else a loss of power may take it, which its readers then have to notice.
    Raises ReplaceMeError at once for the working folder or one around it, which a process cannot put another in place
    of and stay in it.
    """
    path = Path(path)
    if _holds_working_folder(path):
        raise ReplaceMeError(f"{path}: holds the working folder and would be replaced; give another path")
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if synced:
            _sync(temporary)
        _put(temporary, path)
        sync(path.parent)
        noted().written.add(path.absolute())
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise _cannot_write(path, error) from error
    finally:
        remove(temporary)


def _holds_working_folder(path: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(path.resolve())
    except OSError:  # no working folder any more, or no such path can be: whoever writes says so
        return False


def temporary_beside(path: Path) -> Path:
    """Return a new path of this process's beside another one."""
    return path.with_name(f"{TEMPORARY}{path.name}-{machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")


def _put(new: Path, path: Path) -> None:
    """Rename a new file or folder to `path`; an old folder there goes as a whole, so that no kill leaves a part of
    it, but never for a file.
    """
    if not path.is_dir() or path.is_symlink():
        new.replace(path)
        return
    if not new.is_dir():
        raise ReplaceMeError(f"{path}: is a folder, and a file is to be written; give another path")
    old = path.replace(temporary_beside(path))
    try:
        new.replace(path)
    except OSError:
        old.replace(path)
        raise
    remove(old)


def move(made: Path, path: Path) -> None:
    """Rename a complete file or folder to `path`, which is then this step's; both are of one file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _put(made, path)
    sync(path.parent)
    noted().written.add(path.absolute())


def _cannot_write(path: Path, error: Exception) -> ReplaceMeError:
    # a file inside a temporary folder is known to the user by its final path
    final = (p.removeprefix(TEMPORARY).rpartition("-")[0] if p.startswith(TEMPORARY) else p for p in path.parts)
    return ReplaceMeError(
        f"{Path(*final)}: cannot write ({error}); free some space or fix the permissions, then run again"
    )


def _sync(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that goes; the error that led here says more."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given, floats with all their digits, no NaN or infinity.

    A mapping gets the digest of its content as a last key, which `read_json` checks and takes away.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes."""
    content = with_digest(value) if isinstance(value, Mapping) else value
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: str | Path, remedy: str | None = None) -> Any:
    """Read JSON; raises ReplaceMeError when the file is missing, DamagedError when it is not what `write_json` wrote.

    `remedy`: what to do about a broken file that no run rebuilds; the error is then no DamagedError.
    """
    note_read(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReplaceMeError(f"{path}: no such file; run the step that makes it first") from None
    except OSError as error:
        raise ReplaceMeError(f"{path}: cannot read ({error.strerror}); give a file that can be read") from error
    except RecursionError:
        raise _broken(path, "not valid JSON (nested too deeply)", remedy) from None
    except ValueError as error:  # JSON's own, of text that is not UTF-8, and of integers of thousands of digits
        raise _broken(path, f"not valid JSON ({printable(error)})", remedy) from error
    try:
        return without_digest(value) if isinstance(value, dict) else value
    except ValueError as error:
        raise _broken(path, str(error), remedy) from None


def _broken(path: str | Path, what: str, remedy: str | None) -> ReplaceMeError:
    return DamagedError(path, what) if remedy is None else ReplaceMeError(f"{path}: {what}; {remedy}")


def save_tensors(path: str | Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, Any]) -> None:
    """Save tensors and JSON-able metadata as one safetensors file, atomically."""
    # the stamp is one JSON string: safetensors writes several metadata keys in no fixed order, and the same inputs
    # must give the same bytes
    held = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    stamp = {"metadata": metadata, "tensors": tensor_digests(held)}
    with replacing(path) as temporary:
        write_safetensors(temporary, held, {STAMP: sealed(stamp)})


def write_safetensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: dict[str, str]) -> None:
    """Write one safetensors file in place (call it inside `replacing`); a full disk is a ReplaceMeError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata=metadata)
        path.chmod(0o644)  # safetensors makes files that nobody else can read
    except SafetensorError as error:  # its own type for what is an OSError elsewhere
        raise _cannot_write(path, error) from error


def load_tensors(path: str | Path, group: int | None = None) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """Load a file of `save_tensors` (or one group of `save_groups`) as (tensors, metadata).

    Raises ReplaceMeError when missing or corrupted.
    """
    prefix = "" if group is None else f"{group}."
    with _opened(path) as (file, stamp):
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
        for name, digest in tensor_digests(tensors).items():
            if stamp["tensors"].get(name) != digest:
                raise DamagedError(path, f"{name}: {MISMATCH}")
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, stamp["metadata"]


def save_groups(path: str | Path, groups: Sequence[Mapping[str, "torch.Tensor"]], metadata: Mapping[str, Any]) -> None:
    """Write one safetensors file with the tensors of each group of a cut, `0.name`, `1.name` and so on."""
    save_tensors(path, {f"{k}.{name}": value for k, one in enumerate(groups) for name, value in one.items()}, metadata)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Return only the metadata of a file of `save_tensors`; errors as in `load_tensors`."""
    with _opened(path) as (_, stamp):
        return stamp["metadata"]


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ReplaceMeError(f"{path}: no such file; run the step that makes it first")
    note_read(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(STAMP)
            if text is None:
                advice = "give a file that a step wrote, or delete it and run that step"
                raise ReplaceMeError(f"{path}: not written by replaceme; {advice}")
            stamp = unsealed(text)
            if set(file.keys()) != set(stamp["tensors"]):
                raise ValueError(MISMATCH)
            yield file, stamp
    except (SafetensorError, ValueError) as error:
        raise DamagedError(path, f"corrupted safetensors file ({error})") from error


def sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def each_sha256(paths: Sequence[str | Path]) -> Iterator[str]:
    """Yield the hashes of files in their order, several at a time: hashing is slower than disks are."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield from threads.map(sha256, paths)


def sha256_of_all(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the hashes of a folder's files by their names relative to it."""
    names = sorted(names)
    return dict(zip(names, each_sha256([folder / name for name in names]), strict=True))


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise DamagedError where a file of a folder is missing or differs from its SHA-256 in `digests`."""
    for name in digests:
        if not (folder / name).is_file():
            raise DamagedError(folder, "missing", folder / name)
    found = sha256_of_all(folder, digests)
    for name, digest in digests.items():
        if found[name] != digest:
            raise DamagedError(folder, MISMATCH, folder / name)


Check = Callable[[Path, Mapping[str, str]], None]  # of the files of a folder against their SHA-256


class LaterChecks:
    """A check of files as by `check_files`, of which weights are hashed in the background until `wait` is called."""

    def __init__(self) -> None:
        self._begun: list[Future] = []

    def __call__(self, folder: Path, digests: Mapping[str, str]) -> None:
        """Check all files but weights, and begin with these; raises DamagedError as `check_files`."""
        weights = {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}
        check_files(folder, {name: digest for name, digest in digests.items() if name not in weights})
        threads = ThreadPoolExecutor(1)
        self._begun.append(threads.submit(check_files, folder, weights))
        threads.shutdown(wait=False)

    def wait(self) -> None:
        """Wait for the weights; raises DamagedError as `check_files`."""
        for one in self._begun:
            one.result()


def machine() -> str:
    """Return digits that tell this machine from others that see the same folder; its name is nobody's business."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
