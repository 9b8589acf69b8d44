"""Inputs and options of the jobs of cuts and fits.

Cuts of one size share their candidates, and fits of one regression the sums over the text (Gram and cross matrices), so
both have names that follow from the config: `candidates_name`, and `kind` of a regression.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from replaceme.config.command_line import to_flags
from replaceme.config.cuts import MERGING, OF_CANDIDATES, OWN_METRIC, CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.placement import REGRESSION
from replaceme.config.result_paths import (
    CANDIDATES,
    COSTS,
    DISTANCES,
    OF_SUMS,
    RECYCLED,
    ROWS,
    SHARD,
    SUM,
    TOKENS,
    Names,
    at,
)
from replaceme.config.schema import Config

Files = Mapping[str, str | list[str]]
EVIDENCE = ("costs", "distances", "candidates", "statistics", "shards", "rows", "tokens", "recycled")


def _costs(cut: CutConfig, names: Names) -> Files:
    """Return the costs of a model's parts, where a cut's ratio is of another unit than parameters."""
    return {"costs": at(COSTS, names, unit=cut.of)} if cut.needs_costs else {}


def candidates_name(cut: CutConfig) -> str:
    """Return the name under which all cuts of one size, split and token subset share their candidates."""
    split = f"-{cut.groups}-{cut.search}" if cut.several else ""
    if cut.search in ("iterative", *OWN_METRIC):
        split += f"-keep-{cut.keep_first}-{cut.keep_last}"
    if cut.search == "merging":
        split += "".join(f"-{getattr(cut, name)}" for name in MERGING)
    split += "-halves" if cut.halves else ""
    metric = f"-{cut.measured_as}" if cut.needs_loss else ""
    return f"{cut.size}{split}-{cut.samples or 'all'}-samples{metric}"


def evidence_options(files: Files) -> str:
    """Return `--name file ...` for the optional inputs of a job."""
    given = {name: listed(files[name]) for name in EVIDENCE if name in files.keys()}  # noqa: SIM118 (Snakemake's list)
    words = {name: shlex.join(map(str, paths)) for name, paths in given.items()}
    if "shards" in given:
        words["shards"] = shard_files(str(Path(given["shards"][0]).parent), len(given["shards"]))
    return " ".join(f"--{name} {text}" for name, text in words.items())


def listed(files: str | Iterable[str]) -> list[str]:
    """Return one file or several as a list."""
    return [files] if isinstance(files, str) else list(files)


def shard_files(folder: str, shards: int | str) -> str:
    """Return the sums of all shards as a word that bash expands: written out they could be too long for a command."""
    return f"{folder}/{{0..{int(shards) - 1}}}-of-{shards}.safetensors"


@dataclass(frozen=True)
class FitJobs:
    """Inputs and options of the cuts and fits of a config, for the rules."""

    config: Config

    @cached_property
    def candidates(self) -> dict[str, str]:
        """Names of a cut by its candidates: cuts with common candidates agree in what counts for them."""
        cuts = reversed(self.config.cuts.items())
        return {candidates_name(cut): name for name, cut in cuts if cut.needs_candidates}

    @cached_property
    def own(self) -> list[FitConfig]:
        """The fits that are not of other methods, which have no sums."""
        return [fit for fit in self.config.fits.values() if not fit.is_other]

    @cached_property
    def regressions(self) -> dict[str, FitConfig]:
        """Fits with only the options of their sums, by the kind of the sums."""
        plain = [fit.sums_before for fit in self.own if fit.sums_before is not None]
        return {fit.regression.kind: fit.sums for fit in [*self.own, *plain]}

    @cached_property
    def before(self) -> dict[str, FitConfig]:
        """Fits by the kind of the sums that their recycled neurons are chosen from."""
        found = {fit.regression.before.kind: fit for fit in self.own if fit.regression.before}
        return {kind: fit for kind, fit in found.items() if kind not in self.regressions}

    @property
    def kinds(self) -> list[str]:
        """Kinds of all sums."""
        return [*self.regressions, *self.before]

    def cut_evidence(self, names: Names) -> Files:
        """Return the files that a cut is chosen from: candidates for a post-fit metric, else distances; none by
        hand; and the costs of the model's parts, where they are another unit than parameters.
        """
        cut = self.config.cuts[names.cut]
        costs = _costs(cut, names)
        if cut.needs_candidates:
            return {**costs, "candidates": at(CANDIDATES, names, candidates=candidates_name(cut))}
        return costs if cut.start is not None else {**costs, "distances": at(DISTANCES, names)}

    def candidate_costs(self, names: Names) -> Files:
        """Return the costs of the model's parts that candidates depend on, if any."""
        return _costs(self.config.cuts[self.candidates[names.candidates]], names)

    def candidate_costs_option(self, names: Names) -> str:
        """Return the option that names these costs."""
        return evidence_options(self.candidate_costs(names))

    def cut_options(self, names: Names) -> str:
        """Return the options of a cut."""
        return to_flags(self.config.cuts[names.cut])

    def candidate_options(self, names: Names) -> str:
        """Return the options of candidates, from any cut that uses them."""
        cut = self.config.cuts[self.candidates[names.candidates]]
        metric = f" --metric {cut.measured_as}" if cut.needs_loss else ""
        return to_flags(cut, OF_CANDIDATES) + metric

    def fit_evidence(self, names: Names) -> Files:
        """Return the files that a fit is made from: summed statistics, shards for a ridge chosen by them, rows,
        tokens.
        """
        fit = self.config.fits[names.fit]
        if fit.unfitted:
            return {}
        # always, as a model that is not here yet may turn out to have norms after its MLPs, which take forward passes
        files: dict[str, str | list[str]] = {"tokens": at(TOKENS, names)}
        if fit.is_other or fit.sequential(self.config.cuts[names.cut].several):
            return files
        of_sum = self.sum_of(names)
        files["statistics"] = self.summed(of_sum)
        if fit.recycle is not None:
            files["recycled"] = at(RECYCLED, of_sum)
        if fit.automatic:
            files["shards"] = self.shards_of_sum(of_sum)
        if fit.needs_rows:
            exact = "-exact" if fit.needs_state else ""
            files["rows"] = at(ROWS, of_sum, fit_tokens=fit.fit_tokens or "all", exact=exact)
        return files

    def fit_options(self, names: Names) -> str:
        """Return the options of a fit."""
        return to_flags(self.config.fits[names.fit])

    def shards_of_sum(self, names: Names) -> list[str]:
        """Return the files that a sum adds up."""
        return [at(SHARD, names, shard=shard) for shard in range(int(names.shards))]

    def shards_option(self, names: Names) -> str:
        """Return the files that a sum adds up, as one word."""
        return shard_files(at(OF_SUMS, names), names.shards)

    def regression_options(self, names: Names) -> str:
        """Return the options of the sums of a kind, from any fit that uses them."""
        if names.kind in self.regressions:
            return to_flags(self.regressions[names.kind], REGRESSION)
        return to_flags(self.before[names.kind], REGRESSION) + " --before"

    def rows_options(self, names: Names) -> str:
        """Return the options of stored rows: placement, how many tokens, and whether with the state."""
        options = [to_flags(self.regressions[names.kind], ("placement", "recycle", "recycle_from"))]
        options += [] if names.fit_tokens == "all" else [f"--fit-tokens {names.fit_tokens}"]
        return " ".join(options + (["--state"] if names.exact else []))

    def sum_before(self, names: Names) -> str:
        """Return the sum that the recycled neurons of a kind are chosen from."""
        return self.summed(Names(names.items(), kind=self.regressions[names.kind].regression.before.kind))

    def recycled_text(self, names: Names) -> Files:
        """Return the text that the recycled neurons of a kind are chosen by, where sums do not suffice."""
        return {} if self.regressions[names.kind].sums_before is None else {"tokens": at(TOKENS, names)}

    def recycled_text_options(self, names: Names) -> str:
        """Return the option that names this text."""
        return evidence_options(self.recycled_text(names))

    def recycled_neurons(self, names: Names) -> Files:
        """Return the file of the neurons that are changed before sums or rows of a kind are collected, if any.

        Rows have no shards: theirs are the neurons that all shards of the calibration chose.
        """
        fit = self.regressions.get(names.kind)
        if fit is None or fit.recycle is None:
            return {}
        return {"recycled": at(RECYCLED, names, shards=names.get("shards", self._shards(names)))}

    def recycled_options(self, names: Names) -> str:
        """Return the option that names the recycled neurons."""
        return evidence_options(self.recycled_neurons(names))

    def sum_of(self, names: Names) -> Names:
        """Return the names of the sum that a fit reads."""
        kind = self.config.fits[names.fit].regression.kind
        return Names(names.items(), kind=kind, shards=self._shards(names))

    def summed(self, names: Names) -> str:
        """Return the statistics of the whole text: the sum of the shards, or the only shard as it is."""
        return at(SUM, names) if int(names.shards) > 1 else at(SHARD, names, shard=0)

    def sums_behind(self, names: Names) -> list[str]:
        """Return a sum, its shards, and the recycled neurons and sums behind these."""
        found = [self.summed(names), *self.shards_of_sum(names)]
        if recycled := self.recycled_neurons(names):
            kind = self.regressions[names.kind].regression.before.kind
            found += [recycled["recycled"], *self.sums_behind(Names(names.items(), kind=kind))]
        return found

    def _shards(self, names: Names) -> int:
        return self.config.calibrations[names.calibration].shards
