"""Turn a fit section of the config and the gathered evidence into the transforms of a cut.

`fit_section` fits one group from its evidence. `fit_cut` fits all groups of a cut: each on the original model
(`estimation: parallel`), or each on the model as shortened so far (`sequential`), by forward passes of its own.
"""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.fits import FitConfig
from replaceme.config.methods import MethodConfig
from replaceme.config.solvers import SOLVERS, TrainedConfig
from replaceme.config.transforms import WEIGHT
from replaceme.core.errors import ReplaceMeError
from replaceme.fitting.passes import Evidence, Passes
from replaceme.models.checkpoints import Checkpoint, open_checkpoint
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    import torch

    from replaceme.activations.rows import Rows
    from replaceme.activations.statistics import Statistics
    from replaceme.fitting.pair import Changed
    from replaceme.models.family import Family
    from replaceme.transforms.resume import State
    from replaceme.transforms.transform import Transform

END_TO_END = "replaceme.fitting.end_to_end"


def fit_section(config: FitConfig, evidence: Evidence, hidden_size: int) -> "Transform":
    """Fit the transform of a fit section for one group, without the effect of a norm after it.

    The identity and the collapse need no statistics, `ridge: auto` also the shards, a fit over rows these, which it
    streams through the device.
    """
    from replaceme.transforms.registry import function_of

    structure, statistics = config.structure, evidence.statistics
    if not structure.fitted:
        return function_of(structure.function)(hidden_size=hidden_size, statistics=statistics)
    if config.automatic:
        found = function_of(structure.automatic)(statistics, evidence.shards, **_told(config, ("towards",), evidence))
    elif config.solver != "auto":
        found = _over_rows(config, evidence)
    else:
        # in float64 a GPU solves the equations of a large model ten times as fast
        moved = replace(evidence, statistics=statistics.to(evidence.device))
        found = _over_rows(config, moved) if config.needs_rows else _closed_form(config, moved)
        found = replace(found, matrix=found.matrix.cpu())
    report = found.report if config.origin != WEIGHT else {**found.report, "towards": WEIGHT}
    return replace(found, report=report, placement=config.placement, recycled=evidence.recycled)


def _closed_form(config: FitConfig, evidence: Evidence) -> "Transform":
    from replaceme.transforms.registry import function_of

    options = _told(config, config.structure.options, evidence)
    if config.structure.ratios:
        options["ratios"] = evidence.ratios
    return function_of(config.structure.function)(evidence.statistics, **options)


def _over_rows(config: FitConfig, evidence: Evidence) -> "Transform":
    from replaceme.transforms.given_rows import GivenRows
    from replaceme.transforms.objectives import Objective
    from replaceme.transforms.registry import function_of
    from replaceme.transforms.resume import State

    solver = SOLVERS[config.solver]
    given = GivenRows(evidence.statistics, evidence.rows, evidence.device, evidence.state or State())
    objective = Objective(config.objective, config.l1_alpha, config.l2_alpha)
    return function_of(solver.function)(given, objective, **_told(config, solver.options, evidence))


def _told(config: FitConfig, names: Sequence[str], evidence: Evidence) -> dict[str, Any]:
    """Return the options of these names for a function that fits; T0 by its name, or itself."""
    options = {name: getattr(config, name) for name in names}
    if "towards" in options:
        options["towards"] = evidence.old_weight if config.origin == WEIGHT else config.origin
    return options


def fit_state(path: str | Path, config: FitConfig, rows: "Rows", device: str) -> "State":
    """Return the state of a fit over rows in `path`, valid only for the same rows, options, code, device and
    versions.
    """
    from replaceme.transforms.resume import State

    stored = {"origin": rows.origin.content, "parts": rows.parts, "state": rows.state}
    return State(path, state_identity(config, stored, device))


def state_identity(config: MethodConfig, rows: dict[str, Any], device: str) -> dict[str, Any]:
    """Return the facts that a state is valid for: fit section, rows or text, code, device and versions."""
    from replaceme.transforms.resume import here

    return {"fit": config.model_dump(), "rows": rows, **here(device, "replaceme.steps.fit", *modules_of(config))}


def modules_of(config: MethodConfig) -> list[str]:
    """Return the modules that a fit section imports by name: that of its method, or of the structure of its map."""
    from replaceme.transforms.registry import module_of

    training = [END_TO_END] if config.end_to_end else []
    if config.is_other:
        return [*modules_of_method(config), *training]
    structure = config.structure
    used = [SOLVERS[config.solver].function if config.needs_rows else structure.function, structure.basis]
    named = [module_of(name) for name in (*used, structure.automatic if config.automatic else None) if name]
    return [*named, *training]


def modules_of_method(config: MethodConfig) -> list[str]:
    """Return the module of another method, if a fit section names one."""
    return [f"replaceme.methods.{config.method}"] if config.is_other else []


def fit_cut(
    config: FitConfig,
    groups: Sequence[tuple[int, int]],
    record: ModelRecord,
    gathered: Callable[[int], Evidence] | None,
    passes: Callable[[], Passes],
    family: "Family",
) -> "list[Transform]":
    """Fit the transforms of the groups [start, end) of a cut, in order.

    `gathered(k)` gives the evidence of group k on the original model, from what was gathered before; without it a
    forward pass does. `passes()` loads what these need, and is called for that, for a sequential estimation of several
    groups, for a gain and for ratios of magnitudes.
    """
    from replaceme.surgery.shortened_model import shortened

    sequential = config.sequential(len(groups) > 1)
    gain = family.post_norm is not None and not config.unfitted and config.place.of_mlp
    needed = sequential or gathered is None or gain or config.structure.ratios or config.end_to_end
    loaded = passes() if needed else None
    for what, on in (("a sequential estimation", sequential), ("objective kl", config.end_to_end)):
        if on and hasattr(loaded.model, "streamed"):
            raise ReplaceMeError(f"fit: {what} needs the whole model; use another fit, or `streaming: never`")
    found: list[Transform] = []
    with tempfile.TemporaryDirectory(prefix="replaceme-rows-") as scratch:
        if not sequential:
            evidence = gathered or loaded.evidence(config, groups, Path(scratch)).__getitem__
            found = _fit_groups(config, groups, record, evidence, loaded, gain)
            if not config.end_to_end:
                return found
            refined = trained(config, groups, found, loaded)
            return [_measured(one, evidence(number).statistics) for number, one in enumerate(refined)]
        for number, group in enumerate(groups):
            with shortened(loaded.model, family, groups[:number], found):
                evidence = loaded.evidence(config, [group], Path(scratch) / str(number)).__getitem__
                found += _fit_groups(config, [group], record, evidence, loaded, gain)
    return trained(config, groups, found, loaded) if config.end_to_end else found


def _measured(transform: "Transform", statistics: "Statistics") -> "Transform":
    """Return a trained map with the residual and R^2 of its own, unless a norm follows it."""
    from replaceme.transforms.transform import r_squared, residual

    if transform.gain is not None:
        return transform
    values = {name: one(statistics, transform.matrix) for name, one in (("residual", residual), ("r2", r_squared))}
    return replace(transform, report={**transform.report, **values})


def trained(
    config: TrainedConfig,
    groups: Sequence[tuple[int, int]],
    found: "list[Transform]",
    passes: Passes,
    changed: "Changed | None" = None,
) -> "list[Transform]":
    """Return the maps of all groups trained through the model, from their closed forms.

    `changed`: a context in which the shortened model has other changes than its maps.
    """
    # by name: its code is that of such fits alone
    return importlib.import_module(END_TO_END).refine(passes, config, groups, found, changed or nullcontext)


def _fit_groups(
    config: FitConfig,
    groups: Sequence[tuple[int, int]],
    record: ModelRecord,
    evidence: Callable[[int], Evidence],
    passes: Passes | None,
    gain: bool,
) -> "list[Transform]":
    """Fit groups on one and the same model: ratios take a pass for all of them, and so do gains."""
    ratios = passes.ratios(config, groups) if config.structure.ratios else [None] * len(groups)
    checkpoint = open_checkpoint(record.folder) if config.origin == WEIGHT else None
    found = []
    for number, (group, one) in enumerate(zip(groups, ratios, strict=True)):
        given = replace(evidence(number), ratios=one)
        if checkpoint is not None:
            given = replace(given, old_weight=_old_weight(config, checkpoint, group, given))
        found.append(fit_section(config, given, record.hidden_size))
    return passes.gains(config, groups, found) if gain else found


def _old_weight(
    config: FitConfig, checkpoint: Checkpoint, group: tuple[int, int], evidence: Evidence
) -> "torch.Tensor":
    """Return the weight that the map of a group comes in place of, with the length of a fit where a norm follows."""
    from replaceme.transforms.given_rows import scaled

    found = config.place.old_weight(checkpoint, group, evidence.recycled)
    if checkpoint.family.post_norm is None:
        return found
    return scaled(evidence.statistics, found.to(evidence.statistics.gram))
