"""Decide whether rows come before measurements in a run of Snakemake: where the disk has room for all of them at once.

Most of what is left when rows are due waits for the fits that read them, so that a run ends sooner if they come as soon
as they can. But rows of a down projection are ten gigabytes a fit, and those that are made before anything is measured
lie on the disk together. Where they would take more than DISK_SHARE of what is free, they are as urgent as all that
makes models, of which Snakemake prefers the fits that read them; as many as that share has room for are still made by
the pass of another job (`steps/shared_pass.py`).
"""

from pathlib import Path
from typing import Any

from replaceme.activations.rows import DISK_SHARE
from replaceme.config.result_paths import Names
from replaceme.core.disk import free_space
from replaceme.workflow.requests import Requests


class RowsFirst:
    """The priority of rows and of the fits that read them, `urgent` or 0, once `decide` knows the jobs of the run."""

    def __init__(self, requests: Requests, urgent: int) -> None:
        self._requests, self._urgent, self._first = requests, urgent, False

    def decide(self, dag: Any, results: str | Path) -> bool:
        """Return whether the rows of a run that is about to start fit what is free where its results go."""
        stored = [self._requests.stored_rows(job.wildcards) for job in dag.needrun_jobs() if job.rule.name == "rows"]
        self._first = 0 < sum(stored) <= DISK_SHARE * free_space(Path(results))
        if self._first:
            dag.update_priority()
        return self._first

    def of_rows(self, wildcards: Names) -> int:
        """Return the priority of rows."""
        return self._urgent if self._first else 0

    def of_fit(self, wildcards: Names) -> int:
        """Return the priority of a fit."""
        fit = self._requests.fits.config.fits[wildcards.fit]
        return self.of_rows(wildcards) if not fit.is_other and fit.needs_rows else 0
