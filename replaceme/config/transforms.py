"""The structures of T: what each is, what it can be told, and the function that fits it.

A new one is a file of the room `transforms` and an entry of STRUCTURES: see docs/adding.md. An option of its own is a
field of TransformOptions.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from replaceme.config.base import Strict
from replaceme.core.errors import printable


def _ridge(value: Any) -> float | str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (number and 0 <= value < float("inf")):
        return float(value) if number else value
    raise ValueError(f"a number of at least 0, or auto, is needed, found {printable(value)}")


WEIGHT = "weight"  # the origin that is read from the checkpoint
CLOSED_FORM, NOTHING = "closed form", "nothing"
RIDGES = ("ridge", "ridge_relative", "towards")


@dataclass(frozen=True)
class Structure:
    """A structure of T; functions are named `module.function` of the room `transforms`, and imported when they run.

    `function(statistics, **options)` gives the transform, `options` being the keys that the structure can be told and
    `needed` those among them without a default. Without `fitted`, no text is read and it is called with `hidden_size`
    and, where somebody has them, statistics. `ratios`: it is also given the ratios of magnitudes of the residual stream
    across the cut, in the `basis` that a function of the hidden size gives. `automatic(statistics, shards, towards)`
    fits it with `ridge: auto`. `over_rows`: the solvers over rows fit it. `any_shape`: T need not be square. `factor`:
    T is a multiple of the identity. `any_place`: a cut may begin in the middle of a block. `by`: what finds T, in
    a few words for a table.
    """

    function: str
    description: str = ""
    options: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    fitted: bool = True
    ratios: bool = False
    basis: str | None = None
    automatic: str | None = None
    over_rows: bool = False
    any_shape: bool = False
    factor: bool = False
    any_place: bool = True
    by: str = CLOSED_FORM


STRUCTURES = {
    "full": Structure(
        "closed_form.fit_least_squares",
        options=RIDGES,
        automatic="ridge.fit_auto_ridge",
        over_rows=True,
        any_shape=True,
    ),
    "identity": Structure(
        "closed_form.fit_identity", "blocks are dropped, nothing is fitted: UIDL", fitted=False, by=NOTHING
    ),
    "diagonal": Structure("structured.fit_diagonal", options=RIDGES),
    "orthogonal": Structure("structured.fit_orthogonal", "Procrustes"),
    "low_rank": Structure("structured.fit_low_rank", options=("rank", *RIDGES), needed=("rank",)),
    "lower_triangular": Structure("structured.fit_lower_triangular", options=RIDGES),
    "sparse": Structure(
        "sparse.fit_elastic_net",
        "L1 penalty: lasso, elastic net",
        options=("l1", *RIDGES),
        needed=("l1",),
        by="proximal gradient",
    ),
    "scalar": Structure("scaling.fit_scalar", "one factor", options=RIDGES, factor=True),
    "hadamard": Structure("scaling.fit_hadamard", "a diagonal in a Hadamard basis", options=RIDGES),
    "magnitude": Structure(
        "magnitude.fit_magnitude",
        "one factor, a ratio of magnitudes, on the residual stream: Prune&Comp",
        ratios=True,
        factor=True,
    ),
    "hadamard_magnitude": Structure(
        "magnitude.fit_hadamard_magnitude",
        "ratios of magnitudes in a Hadamard basis, on the residual stream: LinearPatch",
        ratios=True,
        basis="scaling.hadamard",
    ),
    "collapse": Structure(
        "collapse.fit_collapse",
        "the removed blocks' weights are merged into the carrier's, nothing is fitted: LaCo",
        fitted=False,
        any_place=False,
        by="nothing; weights added up",
    ),
}


def _described() -> str:
    found = (f"{name} ({one.description})" if one.description else name for name, one in STRUCTURES.items())
    return f"Structure of T: {'; '.join(found)}."


class TransformOptions(Strict):
    """The structure of T and what it can be told."""

    transform: Literal[tuple(STRUCTURES)] = Field("full", description=_described())
    ridge: Annotated[float | Literal["auto"], PlainValidator(_ridge)] = Field(
        0.0,
        description="Absolute value added to the diagonal of the Gram (eq. 9); `auto`: chosen by leaving out one shard "
        "of the calibration text at a time (full T only, `shards` of 2 or more).",
    )
    ridge_relative: float = Field(0.0, ge=0, description="Ridge in units of the Gram's mean diagonal.")
    towards: Literal["zero", "identity", "weight"] | None = Field(
        None,
        description="Origin of ridge and structure: zero, T itself (eq. 9); identity, T - I; weight, T less the old "
        "weight in whose place it comes (placement down_proj). null: weight where there is one, else zero.",
    )
    rank: int | None = Field(None, ge=1, description="Rank of T (or T - I), for `low_rank`.")
    l1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="L1 penalty of `sparse`, as a share of the smallest one that leaves nothing of T (or T - I).",
    )

    @property
    def structure(self) -> Structure:
        """Entry of the structure in the registry."""
        return STRUCTURES[self.transform]
