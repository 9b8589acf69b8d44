"""The section `fits`: a model for each method, of which replaceme's own is `FitConfig`.

What the latter takes is said where it is registered: structures of T in `transforms`, solvers over rows in `solvers`,
places in `placement`. Here are the combinations that nothing can be made of.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from replaceme.config.methods import OTHERS, MethodConfig
from replaceme.config.placement import OFFERED, REGRESSION, PlacementOptions
from replaceme.config.solvers import GRADIENT, KL, SOLVERS, AdamOptions, KlOptions, SolverOptions, TrainedConfig
from replaceme.config.transforms import RIDGES, STRUCTURES, TransformOptions
from replaceme.placements.placement import INPUT

REPLACEME = "replaceme"


class FitConfig(PlacementOptions, AdamOptions, SolverOptions, TrainedConfig, TransformOptions, MethodConfig):
    """The fit of the transform T, or another method that makes the model as small.

    Other methods, for comparison, at the size that the model has without the blocks of the cut, are named by `method`,
    and take keys of their own: see the sections after this one.
    """

    model_config = ConfigDict(title="method replaceme")
    method: Literal["replaceme"] = Field(REPLACEME, description="replaceme: a linear map in place of the blocks.")
    estimation: Literal["parallel", "sequential"] = Field(
        "parallel",
        description="For a cut of several groups: fit each on the original model, or on the model shortened so far.",
    )

    @model_validator(mode="after")
    def _can_be_made(self) -> "FitConfig":
        problem = next((line for check in CHECKS for line in check(self)), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def is_other(self) -> bool:
        """True for a method that fits no T."""
        return False

    @property
    def own_code(self) -> bool:
        """True if the model brings code of its own."""
        return self.place.own_code

    @property
    def of_whole_blocks(self) -> str | None:
        """Return what keeps its cuts to whole blocks; None: they may begin in the middle of one."""
        if not self.place.anywhere:
            return f"placement {self.placement}"
        if self.recycle is not None:
            return "recycle"
        return None if self.structure.any_place else f"transform {self.transform}"

    @property
    def by(self) -> str:
        """Return what finds T, in a few words for a table: nothing, a closed form or gradients."""
        if self.end_to_end:
            return GRADIENT
        return SOLVERS[self.solver].by if self.needs_rows else self.structure.by

    @property
    def unfitted(self) -> bool:
        """True if nothing is fitted, and no text read."""
        return not self.structure.fitted

    @property
    def mlps(self) -> float:
        """Return 1 for rows of neurons, else 0."""
        return float(not self.place.square)

    @property
    def automatic(self) -> bool:
        """True if the ridge is chosen by leaving out shards."""
        return self.ridge == "auto"

    @property
    def origin(self) -> str:
        """Name of T0, from which ridge and structure are counted: as given, else the usual one of the placement."""
        return self.towards or self.place.origins[0]

    @property
    def sums(self) -> "FitConfig":
        """Section with only the options that determine its sums."""
        return FitConfig(**{name: getattr(self.regression, name) for name in REGRESSION})

    @property
    def sums_before(self) -> "FitConfig | None":
        """Section whose sums the neurons of removed blocks are chosen from, that of a fit without them."""
        if self.recycle is None or self.recycle_from == INPUT:
            return None
        return FitConfig(placement=self.regression.before.placement, weighting=self.weighting)

    def sequential(self, several: bool) -> bool:
        """Return whether each group is fitted on the model shortened so far, rather than from common sums."""
        return several and self.estimation == "sequential" and not self.unfitted


def widest(fits: Iterable[MethodConfig]) -> FitConfig:
    """Return a section with the placement that regresses on the widest rows of some fits: mlp, unless one is wider."""
    own = [fit for fit in fits if not fit.is_other and not fit.unfitted]
    return next((FitConfig(placement=fit.place.fitted_as) for fit in own if not fit.place.square), FitConfig())


def _of_rows(fit: FitConfig) -> Iterator[str]:
    """Check that a fit over rows takes its options."""
    solver = SOLVERS[fit.solver]
    if not fit.needs_rows:
        for name in fit.given(ROW_OPTIONS):
            if not (fit.end_to_end and name == "order_seed"):
                yield f"objective {fit.objective} takes no {name}; drop it"
        return
    if not fit.structure.over_rows or fit.ridge != 0:
        what = f"objective {fit.objective}" if fit.solver == "auto" else f"solver {fit.solver}"
        yield f"{what} fits a full T; drop transform and ridge"
    if fit.given(("weighting",)):
        yield "a fit over rows takes no weighting; drop it"
    possible = [name for name, place in OFFERED.items() if place.of_mlp and (place.square or not solver.square)]
    if fit.placement not in possible:
        yield f"a fit over rows by solver {fit.solver} is of placement {' or '.join(possible)}; change either"
    for name in fit.given((*ROW_OPTIONS, *RIDGES)):
        if name not in solver.takes:
            yield f"solver {fit.solver} takes no {name}; drop it"


def _of_training(fit: FitConfig) -> Iterator[str]:
    """Check that the training through the model has a full T, and that nothing else takes its options."""
    if not fit.end_to_end:
        for name in fit.given(tuple(KlOptions.model_fields)):
            yield f"objective {fit.objective} takes no {name}; drop it"
        return
    if fit.solver != "auto":
        yield f"objective {KL} has a training of its own; drop solver"
    if not fit.structure.over_rows:
        yield f"objective {KL} fits a full T; drop transform"


def _of_structure(fit: FitConfig) -> Iterator[str]:
    """Check that a structure of T has the options it needs, and a placement for it."""
    structure = fit.structure
    if not fit.place.square and not structure.any_shape:
        yield f"placement {fit.placement} fits a full T; drop transform"
    if fit.origin not in fit.place.origins:
        possible = " or ".join(fit.place.origins)
        yield f"placement {fit.placement} has no origin {fit.origin} of a ridge; set `towards: {possible}`"
    if fit.recycle is not None and not fit.place.recycles:
        able = " or ".join(name for name, place in OFFERED.items() if place.recycles)
        yield f"placement {fit.placement} recycles no neurons; drop recycle, or take {able}"
    if fit.recycle is None and fit.given(("recycle_from",)):
        yield "recycle_from needs recycle, the share of the neurons"
    lacking = [name for name in structure.needed if getattr(fit, name) is None]
    for name in lacking:
        yield f"transform {fit.transform} needs {name}"
    foreign = {name for one in STRUCTURES.values() for name in one.options} - set(structure.options)
    of_sums = ("weighting",) if structure.ratios else ()
    of_text = () if structure.fitted else ("placement", "weighting", "estimation")
    for name in fit.given((*of_text, *of_sums, *sorted(foreign))):
        yield f"transform {fit.transform} takes no {name}; drop it"
    if fit.automatic and (structure.automatic is None or fit.ridge_relative):
        yield "ridge auto chooses the penalty of a full T; drop the rest"


def _on_stream(fit: FitConfig) -> Iterator[str]:
    """Yield factors, and repairs of the residual stream, that are put elsewhere."""
    if fit.place.factor and not fit.structure.factor:
        able = " or ".join(name for name, one in STRUCTURES.items() if one.factor)
        yield f"placement {fit.placement} takes one factor, transform {able}; change either"
    if fit.structure.ratios and not fit.place.on_stream:
        able = [name for name, one in OFFERED.items() if one.on_stream and (fit.structure.factor or not one.factor)]
        able.sort(key=lambda name: not OFFERED[name].factor)
        yield f"transform {fit.transform} is of the residual stream; set `placement: {'` or `'.join(able)}`"


CHECKS = (_of_training, _of_rows, _of_structure, _on_stream)
# what solvers over rows alone can be told
ROW_OPTIONS = tuple({name: None for one in SOLVERS.values() for name in one.takes if name not in RIDGES})
METHODS: dict[str, type[MethodConfig]] = {REPLACEME: FitConfig, **OTHERS}


def _with_method(raw: Any) -> Any:
    return {"method": REPLACEME, **raw} if isinstance(raw, dict) else raw


AnyFit = Annotated[reduce(or_, METHODS.values()), Field(discriminator="method"), BeforeValidator(_with_method)]


def fit_config(**options: Any) -> MethodConfig:
    """Return the section of the method that is among the options, replaceme's own without one."""
    return METHODS[options.get("method", REPLACEME)](**options)
