"""Estimate the memory and time of jobs for a scheduler; ignored where Snakemake runs them itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

from replaceme.config.result_paths import MODEL, Names, at
from replaceme.planning.job_resources import UNKNOWN, Needs, needs, outline_for
from replaceme.planning.job_work import entry_of, stored_rows, work_of
from replaceme.planning.outline import Outline
from replaceme.workflow.fit_jobs import FitJobs


@dataclass(frozen=True)
class Requests:
    """The requests of all jobs; `warn` is called once for each unknown model."""

    fits: FitJobs
    device: str  # cpu or cuda
    warn: Callable[[str], None]
    _known: dict[str, Outline] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def of(self, rule: str) -> dict[str, Callable[..., int]]:
        """Return the resources `mem_mb` and `runtime` (minutes) of a rule; twice as much at the second attempt."""
        return {
            "mem_mb": lambda wildcards, attempt: self._needs(rule, wildcards).mem_mb * attempt,
            "runtime": lambda wildcards, attempt: self._needs(rule, wildcards).runtime * attempt,
        }

    def stored_rows(self, wildcards: Names) -> int:
        """Return the bytes of the rows that a job stores, at most."""
        return stored_rows(self.fits.config, dict(wildcards.items()), self._outline(wildcards.model))

    def _needs(self, rule: str, wildcards: Names) -> Needs:
        outline = self._outline(wildcards.model)
        names = dict(wildcards.items())
        if "candidates" in names:
            names["cut"] = self.fits.candidates[wildcards.candidates]
        work = work_of(rule, self.fits.config, names, outline)
        return needs(entry_of(rule, self.fits.config, names), outline, work, self.device)

    def _outline(self, name: str) -> Outline:
        """Return the outline of a model; for a missing one, try again."""
        if name not in self._known:
            found = outline_for(self.fits.config.models[name], at(MODEL, Names(model=name)))
            if found is None:
                if name not in self._warned:
                    self._warned.add(name)
                    self.warn(
                        f"models.{name}: not here yet, so its jobs ask for memory and time as one of 8 billion "
                        f"parameters does; make {at(MODEL, Names(model=name))} first, or use --set-resources"
                    )
                return UNKNOWN
            self._known[name] = found
        return self._known[name]
