"""Remove temporary folders of a run of Snakemake beside it, not while all jobs wait for its one thread.

Rows of a large model are ten gigabytes a fit, and to remove them takes seconds, in which Snakemake starts nothing. So a
folder is renamed to a temporary one, which is at once, and a thread removes that. What a killed run leaves of it goes
when the next one begins, as all temporary files do (`snakemake_lock`). For a while the disk holds both what is removed
and what follows: only where it has the room (`rows_first`).
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from replaceme.core.files import remove, temporary_beside

LOGGER = logging.getLogger(__name__)


class Removal:
    """The removal of temporary folders during a run: `begin`, then `end`, which waits for what is left."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._aside: list[Path] = []

    def begin(self) -> None:
        """Take the place of Snakemake's own removal, which still does the rest: files, links, storage."""
        import snakemake.io

        plain = snakemake.io.remove

        async def removed(file: Any, remove_non_empty_dir: bool = False, only_local: bool = False) -> None:
            path = Path(file)
            stored = file.is_storage and not only_local
            if not stored and remove_non_empty_dir and path.is_dir() and not path.is_symlink():
                self._aside.append(path.replace(temporary_beside(path)))
                self._thread.submit(remove, self._aside[-1])
            else:
                await plain(file, remove_non_empty_dir, only_local)

        snakemake.io.remove = removed

    def end(self, log: logging.Logger = LOGGER) -> None:
        """Wait until all is removed, and name what cannot be."""
        self._thread.shutdown()
        for path in self._aside:
            if path.exists():
                log.warning(f"{path}: cannot be removed; it holds rows that nothing needs any more")
