"""Write a checkpoint made from another one: shards, index, config, tokenizer, licence, model card and record.

A `Content` describes it. It is written as a whole or not at all.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, TEMPORARY, json_text, replacing, sha256_of_all
from replaceme.core.origin import Origin
from replaceme.core.redaction import published
from replaceme.models.checkpoints import Checkpoint, open_checkpoint
from replaceme.models.custom_code import CODE
from replaceme.models.model_record import ModelRecord
from replaceme.models.text_encoder import as_stored
from replaceme.models.trust import COMPANIONS
from replaceme.models.weights import INDEX
from replaceme.provenance.environment import versions
from replaceme.surgery.edits import Content
from replaceme.surgery.leftovers import left_out, on_card, without_predictors
from replaceme.surgery.lineage import lineage_of
from replaceme.surgery.old_spellings import with_old_spellings
from replaceme.surgery.shards import Shards

log = logging.getLogger(__name__)


@contextmanager
def merging(
    source: str | Path,
    out: str | Path,
    known: Mapping[str, str] | None = None,
    device: str = "cpu",
    twins: Sequence[Path] = (),
) -> "Iterator[Merger]":
    """Write a checkpoint in two steps within the block (see `Merger`); folder `out` exists afterwards.

    `known`: the SHA-256 of the source's files, if they are; `device`: where products are formed; `twins`: models of the
    same cut, whose unchanged shards may be linked. Errors as in `check_out`.
    """
    check_out(source, out)
    with ExitStack() as stack:
        merger = Merger(open_checkpoint(source), Path(out), stack, known, device, twins)
        for line in merger.left_out:
            log.warning("%s: left out of the new checkpoint: %s", source, line)
        yield merger
        if not merger.finished:
            raise RuntimeError(f"{out}: a merge was begun and not finished")


class Merger:
    """Writes a checkpoint: unchanged shards as soon as the cut is known, the rest when the transforms are."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        out: Path,
        stack: ExitStack,
        known: Mapping[str, str] | None,
        device: str,
        twins: Sequence[Path],
    ) -> None:
        self.checkpoint, self._out, self._stack, self._known, self.device = checkpoint, out, stack, known, device
        self._twins = twins
        self.finished, self.left_out = False, left_out(checkpoint)
        self._folder: Path | None = None
        self._shards: Shards | None = None

    def begin(self, groups: Sequence[tuple[int, int]]) -> None:
        """Start to copy the shards that the transforms of these groups leave unchanged; another cut may still come."""
        self._begun(groups).copy()

    def _begun(self, groups: Sequence[tuple[int, int]]) -> "Shards":
        if self._folder is None:
            self._folder = self._stack.enter_context(replacing(self._out))
            self._folder.mkdir()
        if self._shards is None or self._shards.groups != list(groups):
            self._drop()
            self._shards = Shards(self.checkpoint, list(groups), self._folder, self._known, self._twins)
            self._stack.callback(self._shards.stop)
        return self._shards

    def _drop(self) -> None:
        """Remove the copies that were begun."""
        if self._shards is not None:
            self._shards.stop()
            for path in self._folder.iterdir():
                path.unlink()
            self._shards = None

    def write(self, content: Content, provenance: dict[str, Any], card: str | None = None) -> None:
        """Write the rest; `card` is the model card (README.md).

        `provenance` goes into replaceme.json with the SHA-256 of every file.
        """
        shards = self._begun(content.groups)
        folder = self._folder
        digests = shards.write(content.changes)
        if content.code:
            shutil.copyfile(CODE, folder / CODE.name)
        config = as_stored(with_old_spellings(without_predictors(content.config)))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in self.checkpoint.companions():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.checkpoint.folder / name, folder / name)
        if card is not None:
            (folder / "README.md").write_text(card + on_card(self.left_out), encoding="utf-8")
        others = sha256_of_all(folder, [name for name in files_of(folder) if name not in digests])
        record = {**provenance, "files": dict(sorted((digests | others).items()))}
        (folder / RECORD).write_text(json_text(record), encoding="utf-8")
        self.finished = True


def provenance_of(record: ModelRecord, cut: Cut, fit: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the part of replaceme.json common to all checkpoints: its model, cut, fit and text.

    Of a source that was shortened itself also the `lineage`.
    """
    lineage = lineage_of(record, cut, fit)
    provenance = {
        "source": record.provenance,
        "cut": cut.provenance,
        "fit": fit,
        "origin": origin.content,
        "versions": versions(),
        **({} if lineage is None else {"lineage": lineage}),
    }
    return published(provenance)


def files_of(folder: Path) -> list[str]:
    """Return the files of a folder and of its subfolders, relative to it; an empty subfolder counts as one."""
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink() or not any(path.iterdir()))
    return [path.relative_to(folder).as_posix() for path in found]


def check_out(source: str | Path, out: str | Path) -> None:
    """Raise ReplaceMeError when folder `out` holds anything that an earlier merge would not have written.

    The folder is replaced as a whole, so neither the source nor somebody's own files may be in it.
    """
    out = Path(out)
    if Path(source).resolve().is_relative_to(out.resolve()):
        raise ReplaceMeError(f"{out}: holds the source model and would be overwritten; choose another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise ReplaceMeError(f"{out}: is a file; give a folder for the new model")
    patterns = ("model*.safetensors", INDEX, "README.md", CODE.name, *COMPANIONS)
    ours = {path.relative_to(out).as_posix() for pattern in patterns for path in out.glob(pattern)}
    if (out / RECORD).is_file():
        ours |= {RECORD, "config.json"}
    foreign = sorted(name for name in set(files_of(out)) - ours if not name.startswith(TEMPORARY))
    if foreign:
        raise ReplaceMeError(
            f"{out}: is not empty (it holds {foreign[0]}) and would be replaced; choose another folder"
        )
