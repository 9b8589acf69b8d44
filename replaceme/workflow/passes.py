"""Count the forward passes over each calibration text that the tables of a config take.

Jobs of one model and text share a pass (`planned`), unless one needs what another makes: cuts are chosen from distances
and candidates, sums and rows are of chosen cuts, those with recycled neurons need other sums before. Rows are of the
whole text, sums of its shards, so that they share a pass where there is one shard. Other methods and sequential fits
have passes of their own in place of sums; trainings through the model and ratios of magnitudes have them beside sums.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replaceme.config.schema import Config
from replaceme.config.tables import Row
from replaceme.core.errors import ReplaceMeError
from replaceme.workflow.figure_jobs import FigureJobs
from replaceme.workflow.fit_jobs import FitJobs, candidates_name
from replaceme.workflow.table_jobs import TableJobs


@dataclass(frozen=True)
class TextPasses:
    """Passes for the rows of tables that have a model and a calibration in common: names of what each one is for.

    `own`: fits of a cut with passes of their own, in place of the shared ones or after them; `scored`: choices of
    neurons of removed blocks, of two passes each; `candidates`: names of candidates of cuts, each measured by passes
    over its samples; `most`: the number of samples from which those are taken first that are enough.
    """

    model: str
    calibration: str
    shared: tuple[str, ...]
    own: int
    candidates: tuple[str, ...]
    most: int | None = None
    scored: int = 0

    def __str__(self) -> str:
        """Return the passes as a line for people."""
        line = f"{self.model} on {self.calibration}: {_counted(len(self.shared), 'forward pass', 'es')} over the text"
        line += f" ({'; '.join(self.shared)})"
        line += f", and passes for {_counted(self.own, 'fit')} alone" if self.own else ""
        choices = _counted(self.scored, "choice")
        line += f", and two for each of {choices} of neurons of removed blocks" if self.scored else ""
        line += f"; before them one over at most {self.most} samples, as far as is enough" if self.most else ""
        return line + (f"; candidates of cuts: {', '.join(self.candidates)}" if self.candidates else "")


def _counted(number: int, thing: str, ending: str = "s") -> str:
    return f"{number} {thing}{'' if number == 1 else ending}"


def tables_asked_for(config: Config, targets: Sequence[str]) -> list[str]:
    """Return the tables behind names of tables, figures and targets, if any, else those behind the key `default`.

    Raises ReplaceMeError for a name that is none of these.
    """
    known = [*config.tables, *config.figures, *config.targets]
    for one in targets:
        if one not in known:
            raise ReplaceMeError(f"{one!r} is no table, figure or target; there are {', '.join(known)}")
    names = [name for one in targets or config.default_names for name in config.targets.get(one, [one])]
    return FigureJobs(config, TableJobs(config, FitJobs(config))).tables_behind(names)


def passes(config: Config, tables: Iterable[str]) -> list[TextPasses]:
    """Return the passes that some tables of a config take, for each model and calibration."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for name in tables:
        for row in config.tables[name].pruned:
            rows.setdefault((row.model, row.calibration), []).append(row)
    return [_of_text(config, *pair, found) for pair, found in rows.items()]


def _of_text(config: Config, model: str, calibration: str, rows: list[Row]) -> TextPasses:
    section = config.calibrations[calibration]
    cuts = {name: config.cuts[name] for name in dict.fromkeys(row.cut for row in rows)}
    pairs = {(row.cut, row.fit): config.fits[row.fit] for row in rows if not config.fits[row.fit].unfitted}
    apart = [pair for pair, fit in pairs.items() if fit.is_other or fit.sequential(cuts[pair[0]].several)]
    summed = {pair: fit for pair, fit in pairs.items() if pair not in apart}
    own = [pair for pair, fit in pairs.items() if pair in apart or fit.end_to_end or fit.structure.ratios]
    shared = {"distances": True}
    for kind, of_kind in (("", True), (" with recycled neurons", False)):
        # recycled neurons are chosen from sums without them
        sums = any(of_kind or fit.recycle is not None for fit in summed.values())
        stored = any(fit.needs_rows and (fit.recycle is None) == of_kind for fit in summed.values())
        together = section.shards == 1
        shared[f"sums and rows{kind}" if stored and together else f"sums{kind}"] = sums
        shared[f"rows{kind}"] = stored and not together
    scored = {(cut, fit.regression) for (cut, _), fit in summed.items() if fit.sums_before is not None}
    candidates = {candidates_name(cut): True for cut in cuts.values() if cut.needs_candidates}
    most = section.most if section.automatic else None
    names = tuple(name for name, on in shared.items() if on)
    return TextPasses(model, calibration, names, len(own), (*candidates,), most, len(scored))
