"""The section `fits`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from replaceme.config import methods
from replaceme.config.base import Strict
from replaceme.core.errors import printable

if TYPE_CHECKING:
    from replaceme.config.placement import Regression


def _ridge(value: Any) -> float | str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (number and 0 <= value < float("inf")):
        return float(value) if number else value
    raise ValueError(f"a number of at least 0, or auto, is needed, found {printable(value)}")


# what the sums over the text depend on
REGRESSION = ("placement", "weighting", "recycle")
RIDGES = ("ridge", "ridge_relative", "towards")
# what each structure of T can be told beside its objective
FIT_OPTIONS = {
    "full": RIDGES,
    "identity": (),
    "diagonal": RIDGES,
    "orthogonal": (),
    "low_rank": ("rank", *RIDGES),
    "lower_triangular": RIDGES,
    "sparse": ("l1", *RIDGES),
    "scalar": RIDGES,
    "hadamard": RIDGES,
    "magnitude": (),
    "hadamard_magnitude": (),
    "collapse": (),
}
# nothing is fitted: no text is read
UNFITTED = ("identity", "collapse")
# from ratios of magnitudes, on the residual stream
MAGNITUDES = ("magnitude", "hadamard_magnitude")
FULL_BATCH = ("fit_tokens", "iterations", "l2_alpha")
# what each solver can be told where the fit reads stored rows
SOLVER_OPTIONS = {
    "auto": ("fit_tokens", "iterations", "ridge_relative", "towards"),
    "adam": (
        "fit_tokens", "learning_rate", "batch_tokens", "epochs", "mask_ratio", "order_seed", "l1_alpha", "l2_alpha",
    ),
    "nlcg": FULL_BATCH,
    "lbfgs": FULL_BATCH,
    "trust_ncg": FULL_BATCH,
}  # fmt: skip


class FitConfig(Strict):
    """The fit of the transform T, or another method that makes the model as small."""

    method: Literal["replaceme", "svd_llm", "llm_streamline", "slicegpt", "llm_pruner"] = Field(
        "replaceme",
        description="replaceme: a linear map in place of the blocks, by the keys below. Others, for comparison, at the "
        "size that the model has without the blocks of the cut: svd_llm (pairs of factors in place of linear layers), "
        "llm_streamline (the carrier trained to do the work of the blocks), slicegpt (a narrower residual stream), "
        "llm_pruner (fewer attention heads and MLP channels).",
    )
    transform: Literal[
        "full",
        "identity",
        "diagonal",
        "orthogonal",
        "low_rank",
        "lower_triangular",
        "sparse",
        "scalar",
        "hadamard",
        "magnitude",
        "hadamard_magnitude",
        "collapse",
    ] = Field(
        "full",
        description="Structure of T: full; identity (blocks are dropped, nothing is fitted: UIDL); diagonal; "
        "orthogonal (Procrustes); low_rank; lower_triangular; sparse (L1 penalty: lasso, elastic net); scalar (one "
        "factor); hadamard (a diagonal in a Hadamard basis); both also with ratios of magnitudes for factors, on the "
        "residual stream: magnitude (Prune&Comp), hadamard_magnitude (LinearPatch); collapse (the removed blocks' "
        "weights are merged into the carrier's, nothing is fitted: LaCo).",
    )
    objective: Literal["l2", "cosine", "cosine_exact"] = Field(
        "l2",
        description="Objective of the fit: l2 is least squares (eq. 6), cosine the mean cosine distance between M T "
        "and the target (eq. 8), cosine_exact that between M T + Y and the state after the cut (eq. 7); a full T over "
        "stored rows but for l2.",
    )
    solver: Literal["auto", "adam", "nlcg", "lbfgs", "trust_ncg"] = Field(
        "auto",
        description="Solver; auto is the closed form for l2, reweighted least squares for the others; the paper's are "
        "adam (its default) and, over all rows at each step, nonlinear conjugate gradients, L-BFGS and trust-region "
        "Newton-CG, all from T = I.",
    )
    ridge: Annotated[float | Literal["auto"], PlainValidator(_ridge)] = Field(
        0.0,
        description="Absolute value added to the diagonal of the Gram (eq. 9); `auto`: chosen by leaving out one shard "
        "of the calibration text at a time (full T only, `shards` of 2 or more).",
    )
    ridge_relative: float = Field(0.0, ge=0, description="Ridge in units of the Gram's mean diagonal.")
    towards: Literal["zero", "identity"] = Field(
        "zero", description="Origin of ridge and structure: T itself (eq. 9), or T - I."
    )
    rank: int | None = Field(None, ge=1, description="Rank of T (or T - I), for `low_rank`.")
    l1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="L1 penalty of `sparse`, as a share of the smallest one that leaves nothing of T (or T - I).",
    )
    placement: Literal["mlp", "down_proj", "block", "upstream"] = Field(
        "mlp",
        description="Place of T: mlp, onto the output of the carrier's MLP, folded into its down projection; "
        "down_proj, in place of the down projection (full T only); block, onto the whole residual stream after the "
        "carrier, as a linear layer of its own (the saved model then needs `trust_remote_code`); upstream, onto the "
        "same, folded into all weights that write to it up to there (one factor: scalar, magnitude).",
    )
    weighting: Literal["uniform", "inverse_energy"] = Field(
        "uniform",
        description="Weight of tokens in the sums: all alike, or by 1 / |r|^2 (least squares of the target's direction "
        "rather than of the target).",
    )
    recycle: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the carrier's MLP neurons, the least used ones, that are set to pass on linear features "
        "of the MLP's input (at most as many as the hidden size; placement down_proj, gated MLPs).",
    )
    intercept: bool = Field(
        False,
        description="Fit a constant too; needs an MLP that can have biases (Llama's `mlp_bias`), or placement block.",
    )
    estimation: Literal["parallel", "sequential"] = Field(
        "parallel",
        description="For a cut of several groups: fit each on the original model, or on the model shortened so far. "
        "svd_llm and slicegpt: the same for each block.",
    )
    fit_tokens: int | None = Field(
        None, ge=16, description="Tokens, drawn uniformly, whose rows a fit over rows stores; null: all."
    )
    iterations: int | None = Field(
        None,
        ge=1,
        description="Most iterations of a fit over rows other than adam's; null: 10 passes of reweighted least squares "
        "after the first, 100 iterations of nlcg, lbfgs or trust_ncg.",
    )
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of adam, or llm_streamline.")
    batch_tokens: int = Field(1024, ge=1, description="Tokens of a batch of adam, or llm_streamline.")
    epochs: int = Field(10, ge=1, description="Passes of adam over the rows, or of llm_streamline over the text.")
    mask_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the tokens, drawn anew, that each epoch of adam leaves out (A.12)."
    )
    order_seed: int = Field(
        0,
        ge=0,
        description="Seed of the order of the tokens, and of the masks, of adam, or of the text of llm_streamline.",
    )
    network: Literal["layer", "mlp"] = Field(
        "layer",
        description="Network of llm_streamline: layer, a whole block; mlp, a block without attention (its MLP behind "
        "its norm, beside the residual stream), which is smaller.",
    )
    whole_first: int = Field(1, ge=0, description="First blocks that llm_pruner leaves as they are.")
    whole_last: int = Field(
        1, ge=0, description="Last blocks, likewise; 0 of both: all blocks alike, so that the model needs no code."
    )
    l1_alpha: float = Field(
        0.0, ge=0, description="Penalty on the sum of |T_ij|, in units of the mean loss, of adam (eq. 9)."
    )
    l2_alpha: float = Field(
        0.0,
        ge=0,
        description="Penalty on the sum of T_ij^2, in units of the mean loss, of the gradient solvers (eq. 9).",
    )

    @model_validator(mode="after")
    def _options_of_the_method(self) -> "FitConfig":
        for name in type(self).model_fields:
            if self.is_other and name not in ("method", *methods.OPTIONS[self.method]) and self._given(name):
                raise ValueError(f"method {self.method} takes no {name}; drop it")
            if not self.is_other and name in methods.OWN and self._given(name):
                raise ValueError(f"{name} is of other methods than replaceme; drop it, or set `method`")
        return self

    @model_validator(mode="after")
    def _options_of_the_solver(self) -> "FitConfig":
        if self.is_other:
            return self
        if self.needs_rows and (self.transform != "full" or self.ridge != 0):
            what = f"objective {self.objective}" if self.solver == "auto" else f"solver {self.solver}"
            raise ValueError(f"{what} fits a full T; drop transform and ridge")
        for name in ("weighting", "intercept"):
            if self.needs_rows and self._given(name):
                raise ValueError(f"a fit over rows takes no {name}; drop it")
        if self.needs_rows and self.placement != "mlp" and (self.placement == "block" or self.solver != "auto"):
            raise ValueError(
                "a fit over rows is of placement mlp, or with solver auto of down_proj; change placement or solver"
            )
        allowed = SOLVER_OPTIONS[self.solver] if self.needs_rows else ()
        for name in dict.fromkeys(name for names in SOLVER_OPTIONS.values() for name in names):
            if self.needs_rows and name not in allowed and self._given(name):
                raise ValueError(f"solver {self.solver} takes no {name}; drop it")
            if not self.needs_rows and name not in RIDGES and self._given(name):
                raise ValueError(f"objective {self.objective} takes no {name}; drop it")
        return self

    @model_validator(mode="after")
    def _options_of_the_structure(self) -> "FitConfig":
        allowed = FIT_OPTIONS[self.transform]
        if self.placement == "down_proj" and (self.transform != "full" or self.towards != "zero"):
            raise ValueError("placement down_proj fits a full T; drop transform and towards")
        if self.recycle is not None and self.placement != "down_proj":
            raise ValueError(f"placement {self.placement} recycles no neurons; drop recycle, or take down_proj")
        for name in ("placement", "weighting", "intercept", "estimation"):
            if self.unfitted and self._given(name):
                raise ValueError(f"transform {self.transform} takes no {name}; drop it")
        for name in ("rank", "l1"):
            if name in allowed and getattr(self, name) is None:
                raise ValueError(f"transform {self.transform} needs {name}")
        for name in (*RIDGES, "rank", "l1"):
            if name not in allowed and self._given(name):
                raise ValueError(f"transform {self.transform} takes no {name}; drop it")
        if self.automatic and (self.transform != "full" or self.ridge_relative or self.intercept):
            raise ValueError("ridge auto chooses the penalty of a full T; drop the rest, an intercept included")
        return self

    @model_validator(mode="after")
    def _options_on_the_stream(self) -> "FitConfig":
        if self.placement == "upstream" and self.transform not in ("scalar", "magnitude"):
            raise ValueError("placement upstream takes one factor, transform scalar or magnitude; change either")
        if self.placement == "upstream" and self.intercept:
            raise ValueError("placement upstream has no place for an intercept; drop it, or take block")
        if not self.needs_magnitudes:
            return self
        allowed = ("upstream", "block") if self.transform == "magnitude" else ("block",)
        if self.placement not in allowed:
            raise ValueError(f"transform {self.transform} is of the residual stream; set `placement: {allowed[0]}`")
        for name in ("weighting", "intercept"):
            if self._given(name):
                raise ValueError(f"transform {self.transform} takes no {name}; drop it")
        return self

    @property
    def is_other(self) -> bool:
        """True for a method that fits no T."""
        return self.method != "replaceme"

    @property
    def described(self) -> dict[str, Any]:
        """Section as plain data, with only the options that its method takes."""
        return self.model_dump(include={"method", *methods.OPTIONS[self.method]} if self.is_other else None)

    @property
    def own_code(self) -> bool:
        """True if the model brings code of its own."""
        return methods.coded(self) or (self.placement == "block" and self.transform != "identity")

    @property
    def needs_loss(self) -> bool:
        """True if it needs the language-model loss, and so the model's head."""
        return self.method == "llm_pruner"

    def _given(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default

    @property
    def regression(self) -> "Regression":
        """Placement and weighting of its regression."""
        from replaceme.config.placement import Regression

        # upstream and block differ in where the map goes, not in what it is fitted on
        placement = "block" if self.placement == "upstream" else self.placement
        return Regression(placement, self.weighting, self.recycle)

    @property
    def sums(self) -> "FitConfig":
        """Section with only the options that determine its sums."""
        regression = self.regression
        return FitConfig(**{name: getattr(regression, name) for name in REGRESSION})

    @property
    def unfitted(self) -> bool:
        """True if nothing is fitted, and no text read."""
        return self.transform in UNFITTED

    @property
    def needs_magnitudes(self) -> bool:
        """True if the fit reads ratios of magnitudes, which the sums do not hold."""
        return self.transform in MAGNITUDES

    def sequential(self, several: bool) -> bool:
        """Return whether each group is fitted on the model shortened so far, rather than from common sums."""
        return several and self.estimation == "sequential" and not self.unfitted

    @property
    def automatic(self) -> bool:
        """True if the ridge is chosen by leaving out shards."""
        return self.ridge == "auto"

    @property
    def needs_rows(self) -> bool:
        """True if the fit reads stored rows, beyond sums."""
        return self.objective != "l2" or self.solver != "auto"

    @property
    def needs_state(self) -> bool:
        """True if the stored rows hold the residual stream too."""
        return self.objective == "cosine_exact"
