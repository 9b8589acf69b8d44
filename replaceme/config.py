"""The schema of config.yaml: every key, its type, range, unit and default, in one place.

The same models validate the workflow's config (all errors at once, one line each, before any job starts), give the
command line its options, and are the source of docs/config.md. Nothing here imports torch or Snakemake.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from replaceme.errors import ReplaceMeError, printable
from replaceme.validation import validated
from replaceme.yaml_file import read_yaml

if TYPE_CHECKING:
    from replaceme.regression import Regression

# names become folders under results/: one plain path component, never a hidden or a parent folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED = {
    "models": {"benchmarks", "logs", "published", "tables"},
    "calibrations": {"baseline"},
    "cuts": {"candidates"},
    "fits": {"gram", "rows"},
}
Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
POST_FIT_METRICS = ("residual", "cosine_after_fit", "loss")
REPRESENTATIONS = ("cka", "cca")


class Strict(BaseModel):
    """A section of the config that refuses unknown keys and cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(Strict):
    """A model to shorten."""

    source: str = Field(description="Folder of a safetensors checkpoint, or a Hub id (`owner/name`).")
    revision: str | None = Field(None, description="Hub revision: commit, tag or branch; recorded as a commit.")


class CalibrationConfig(Strict):
    """The text, or for encoders the images, on which hidden states are observed."""

    dataset: str | None = Field(
        None, description="`micro` (the embedded generator), a .txt, .jsonl or .parquet file, or a Hub dataset id."
    )
    images: str | None = Field(
        None,
        description="For encoders, in place of `dataset`: a folder of images (.png, .jpg, .webp, .bmp), a Hub dataset "
        "id, or `generated` (textures and shapes).",
    )
    name: str | None = Field(None, description="Hub dataset configuration, such as `sample-10BT`.")
    revision: str | None = Field(None, description="Hub dataset revision.")
    split: str = Field("train", description="Hub dataset split.")
    column: str | None = Field(None, description="Column that holds the text or the images; null: `text`, or `image`.")
    conversations: str | None = Field(
        None, description="Column that holds conversations; they go through the model's chat template."
    )
    samples: int = Field(128, ge=1, description="Number of token sequences, or of images.")
    tokens: int = Field(1024, ge=2, description="Length of a sequence, in tokens; longer ones are truncated.")
    pack: bool | None = Field(
        None,
        description="Join documents into full sequences instead of padding each; default: only for `micro` and .txt.",
    )
    seed: int = Field(0, ge=0, description="Seed of the generator or of the shuffle.")
    shards: int = Field(1, ge=1, le=10_000, description="Jobs over which Gram accumulation is spread.")
    batch_size: int = Field(8, ge=1, description="Sequences, or images, per forward pass.")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = Field(
        "auto", description="Type of the forward pass; auto: the checkpoint's on a GPU, float32 on a CPU."
    )
    streaming: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether forward passes hold one block's weights at a time (docs/method.md); auto: where a model "
        "does not fit the device.",
    )

    @model_validator(mode="after")
    def _text_or_images(self) -> "CalibrationConfig":
        if (self.dataset is None) == (self.images is None):
            raise ValueError("give either dataset (text) or images")
        given = self.model_fields_set & {"tokens", "pack", "conversations"}
        if self.images is not None and given:
            raise ValueError(f"images take no {', '.join(sorted(given))}; drop it")
        return self

    @property
    def source(self) -> str:
        """Where the text or the images come from."""
        return self.dataset if self.images is None else self.images

    @property
    def source_column(self) -> str:
        """The column of the text or of the images."""
        return self.column or ("text" if self.images is None else "image")


class CutConfig(Strict):
    """Which run of blocks goes."""

    blocks: int | None = Field(None, ge=1, description="Number of blocks to remove.")
    ratio: float | None = Field(
        None, gt=0, lt=1, description="Share of the parameters to remove, resolved to the nearest number of blocks."
    )
    groups: int = Field(
        1, ge=1, description="Number of runs into which the blocks to remove are split, one transform each."
    )
    adjacency: Literal["merge", "separate"] = Field(
        "merge",
        description="What becomes of groups that touch: merge, one group of them (Multi_LT of the paper); separate, "
        "at least one block is kept between any two (Multi_LT_NC).",
    )
    search: Literal["greedy", "dynamic"] = Field(
        "greedy",
        description="How several groups are found: greedy, groups of one size, the least metric first (the paper); "
        "dynamic, at most so many groups of any sizes whose metric has the least sum.",
    )
    start: int | None = Field(
        None, description="First block to remove, to place the cut by hand; null: chosen by the metric."
    )
    metric: Literal["cosine", "angular", "l2", "bi", "cka", "cca", "residual", "cosine_after_fit", "loss"] = Field(
        "cosine_after_fit",
        description="What the choice minimises: a distance of hidden states before and after (cosine, angular: the "
        "paper; l2; bi: ShortGPT's block influences; cka, cca: of representations), or what is left after the "
        "least-squares fit of every candidate (residual; cosine_after_fit; loss, the rise of the language-model loss "
        "on calibration text held out).",
    )
    position: Literal["all", "last"] = Field(
        "all", description="Tokens over which a distance is averaged: all unmasked ones, or the last of each sequence."
    )
    samples: int | None = Field(
        64,
        ge=1,
        description="Calibration sequences that the post-fit metrics fit on (loss: and a quarter as many held out); "
        "null: all of them.",
    )

    @model_validator(mode="after")
    def _one_size(self) -> "CutConfig":
        if (self.blocks is None) == (self.ratio is None):
            raise ValueError("give either blocks or ratio")
        if self.start is not None and self.start < 1:
            raise ValueError(f"start {self.start} leaves no carrier: block 0 stays, so start at 1 or later")
        if self.metric in (*REPRESENTATIONS, *POST_FIT_METRICS) and self.position != "all":
            raise ValueError(f"metric {self.metric} averages over all tokens; drop `position: {self.position}`")
        return self

    @model_validator(mode="after")
    def _options_of_several_groups(self) -> "CutConfig":
        if self.groups > 1 and self.start is not None:
            raise ValueError("start places one group by hand; drop groups")
        for name in ("adjacency", "search"):
            if self.groups == 1 and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is about several groups; drop it, or set `groups: 2` or more")
        if self.blocks is not None and self.groups > self.blocks:
            raise ValueError(f"{self.blocks} blocks cannot be {self.groups} groups; lower groups")
        if self.blocks is not None and self.search == "greedy" and self.blocks % self.groups:
            raise ValueError(f"search greedy needs blocks that {self.groups} divides; change them, or search: dynamic")
        return self

    @property
    def post_fit(self) -> bool:
        """Whether the choice needs the fits of all candidates, rather than distances."""
        return self.start is None and self.metric in POST_FIT_METRICS

    @property
    def needs_loss(self) -> bool:
        """Whether the choice needs the language-model loss, and so the model's head."""
        return self.start is None and self.metric == "loss"

    @property
    def of_representations(self) -> bool:
        """Whether the choice needs distances that are not measured unless asked for."""
        return self.start is None and self.metric in REPRESENTATIONS

    @property
    def size(self) -> str:
        """The size as a path component: `6-blocks` or `0.25-ratio`."""
        return f"{self.blocks}-blocks" if self.blocks is not None else f"{self.ratio}-ratio"


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
}
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
    """How the transform T is found."""

    transform: Literal[
        "full", "identity", "diagonal", "orthogonal", "low_rank", "lower_triangular", "sparse", "scalar", "hadamard"
    ] = Field(
        "full",
        description="Structure of T: full; identity (blocks are dropped, nothing is fitted: UIDL); diagonal; "
        "orthogonal (Procrustes); low_rank; lower_triangular; sparse (L1 penalty: lasso, elastic net); scalar (one "
        "factor); hadamard (a diagonal in a Hadamard basis).",
    )
    objective: Literal["l2", "cosine", "cosine_exact"] = Field(
        "l2",
        description="What the fit minimises: l2 is least squares (eq. 6), cosine the mean cosine distance between M T "
        "and the target (eq. 8), cosine_exact that between M T + Y and the state after the cut (eq. 7); a full T over "
        "stored rows but for l2.",
    )
    solver: Literal["auto", "adam", "nlcg", "lbfgs", "trust_ncg"] = Field(
        "auto",
        description="How: auto is the closed form for l2 and reweighted least squares for the others; the paper's are "
        "adam (its default) and, over all rows at each step, nonlinear conjugate gradients, L-BFGS and trust-region "
        "Newton-CG, all from T = I.",
    )
    ridge: Annotated[float | Literal["auto"], PlainValidator(_ridge)] = Field(
        0.0,
        description="Absolute value added to the diagonal of the Gram (eq. 9); `auto`: chosen by leaving out one shard "
        "of the calibration text at a time (full T only, `shards` of 2 or more).",
    )
    ridge_relative: float = Field(0.0, ge=0, description="The same in units of the Gram's mean diagonal.")
    towards: Literal["zero", "identity"] = Field(
        "zero", description="What ridge and structure are counted from: T itself (eq. 9), or T - I."
    )
    rank: int | None = Field(None, ge=1, description="Rank of T (or T - I), for `low_rank`.")
    l1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="L1 penalty of `sparse`, as a share of the smallest one that leaves nothing of T (or T - I).",
    )
    placement: Literal["mlp", "down_proj", "block"] = Field(
        "mlp",
        description="Where T goes: mlp, onto the output of the carrier's MLP, folded into its down projection; "
        "down_proj, in place of the down projection (full T only); block, onto the whole residual stream after the "
        "carrier, as a linear layer of its own (the saved model then needs `trust_remote_code`).",
    )
    weighting: Literal["uniform", "inverse_energy"] = Field(
        "uniform",
        description="How tokens count in the sums: all alike, or by 1 / |r|^2 (least squares of the target's direction "
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
        description="Whether a constant is fitted too; needs an MLP that can have biases (Llama's `mlp_bias`), or "
        "placement block.",
    )
    estimation: Literal["parallel", "sequential"] = Field(
        "parallel",
        description="Where a cut has several groups: fit each on the original model, or on the model shortened so far.",
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
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of adam.")
    batch_tokens: int = Field(1024, ge=1, description="Tokens of a batch of adam.")
    epochs: int = Field(10, ge=1, description="Passes of adam over the rows.")
    mask_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the tokens, drawn anew, that each epoch of adam leaves out (A.12)."
    )
    order_seed: int = Field(0, ge=0, description="Seed of the order of the tokens, and of the masks, of adam.")
    l1_alpha: float = Field(
        0.0, ge=0, description="Penalty on the sum of |T_ij|, in units of the mean loss, of adam (eq. 9)."
    )
    l2_alpha: float = Field(
        0.0,
        ge=0,
        description="Penalty on the sum of T_ij^2, in units of the mean loss, of the gradient solvers (eq. 9).",
    )

    @model_validator(mode="after")
    def _options_of_the_solver(self) -> "FitConfig":
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
            if self.transform == "identity" and self._given(name):
                raise ValueError(f"transform identity takes no {name}; drop it")
        for name in ("rank", "l1"):
            if name in allowed and getattr(self, name) is None:
                raise ValueError(f"transform {self.transform} needs {name}")
        for name in (*RIDGES, "rank", "l1"):
            if name not in allowed and self._given(name):
                raise ValueError(f"transform {self.transform} takes no {name}; drop it")
        if self.automatic and (self.transform != "full" or self.ridge_relative or self.intercept):
            raise ValueError("ridge auto chooses the penalty of a full T; drop the rest, an intercept included")
        return self

    def _given(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default

    @property
    def regression(self) -> "Regression":
        """What is fitted on what."""
        from replaceme.regression import Regression

        return Regression(self.placement, self.weighting, self.recycle)

    def sequential(self, groups: int) -> bool:
        """Whether a cut of so many groups is fitted on the model shortened so far, rather than from common sums."""
        return groups > 1 and self.estimation == "sequential" and self.transform != "identity"

    @property
    def automatic(self) -> bool:
        """Whether the ridge is chosen by leaving out shards."""
        return self.ridge == "auto"

    @property
    def needs_rows(self) -> bool:
        """Whether sums are not enough: the fit reads stored rows."""
        return self.objective != "l2" or self.solver != "auto"

    @property
    def needs_state(self) -> bool:
        """Whether those rows hold the residual stream too."""
        return self.objective == "cosine_exact"


class TaskConfig(Strict):
    """How one lm-eval task is run."""

    fewshot: int | None = Field(None, ge=0, description="Number of examples in the prompt; null: the task's own.")
    metric: str | None = Field(None, description="Metric of the table; null: acc_norm where the task has it, else acc.")
    in_average: bool = Field(True, description="Whether the task counts in the average accuracy.")


class EvaluationConfig(Strict):
    """Benchmarks, run by lm-eval."""

    tasks: dict[Name, TaskConfig] = Field(min_length=1, description="lm-eval tasks by name, with options.")
    include: str | None = Field(None, description="Folder of task YAMLs of your own.")
    perplexity: str | None = Field(None, description="Task that gives the perplexity column.")
    batch_size: int = Field(16, ge=1, description="Requests per forward pass.")
    limit: int | None = Field(None, ge=1, description="First items of each task only; null: all of them.")
    seed: int = Field(1234, ge=0, description="Seed of the few-shot examples.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of the forward pass; auto: the checkpoint's on a GPU, float32 on a CPU."
    )

    @model_validator(mode="after")
    def _perplexity_is_a_task(self) -> "EvaluationConfig":
        if self.perplexity is not None and self.perplexity not in self.tasks:
            raise ValueError(f"perplexity names {self.perplexity!r}, which is not among its tasks")
        return self


class SpeedConfig(Strict):
    """How latency and throughput are measured."""

    prompt_tokens: int = Field(256, ge=1, description="Length of the prompt, in tokens.")
    new_tokens: int = Field(32, ge=1, description="Tokens generated one by one after it.")
    batch_size: int = Field(1, ge=1, description="Sequences in flight.")
    repeats: int = Field(5, ge=1, description="Timed runs, of which the median counts.")
    warmup: int = Field(2, ge=0, description="Runs before the timed ones.")


class TableConfig(Strict):
    """A result table: the baselines of its models, and every combination of the rest."""

    models: list[str] = Field(min_length=1, description="Names under `models`.")
    calibrations: list[str] = Field(min_length=1, description="Names under `calibrations`.")
    cuts: list[str] = Field(min_length=1, description="Names under `cuts`.")
    fits: list[str] = Field(min_length=1, description="Names under `fits`.")
    evaluation: str | None = Field(
        description="Name under `evaluations`; null: the models are made, none is measured (encoders)."
    )
    caption: str = Field("", description="A sentence above the table.")


class Config(Strict):
    """The whole of config.yaml."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where tensors are computed.")
    models: dict[Name, ModelConfig] = Field(min_length=1, description="Models by name.")
    calibrations: dict[Name, CalibrationConfig] = Field(min_length=1, description="Calibrations by name.")
    cuts: dict[Name, CutConfig] = Field(min_length=1, description="Cuts by name.")
    fits: dict[Name, FitConfig] = Field(min_length=1, description="Fits by name.")
    evaluations: dict[Name, EvaluationConfig] = Field({}, description="Evaluations by name.")
    speed: SpeedConfig = Field(SpeedConfig(), description="Speed measurement.")
    tables: dict[Name, TableConfig] = Field(min_length=1, description="Tables by name.")


# the keys of a table that hold names, and the sections that define those
REFERENCES = {
    "models": "models",
    "calibrations": "calibrations",
    "cuts": "cuts",
    "fits": "fits",
    "evaluation": "evaluations",
}


def parse(raw: Any, origin: str = "config.yaml") -> Config:
    """Validate a config; raises ReplaceMeError with every error on a line of its own (`file: key: what; remedy`)."""
    if not isinstance(raw, dict):
        raise ReplaceMeError(f"{origin}: expected a mapping of sections, found {type(raw).__name__}")
    return validated(Config, raw, origin, extra_checks=_dangling_and_reserved)


def _dangling_and_reserved(raw: dict) -> list[str]:
    """Reserved names, and names in tables that nothing defines; on plain data, so that it adds to the other errors."""
    lines = []
    for section, names in RESERVED.items():
        lines += [
            f"{section}.{name}: this name is reserved; choose another"
            for name in _section(raw, section)
            if name in names
        ]
    for table_name in _section(raw, "tables"):
        table = _section(raw["tables"], table_name)
        for key, section in REFERENCES.items():
            names = [table.get(key)] if key == "evaluation" else table.get(key)
            # a missing section is an error of its own, but for the one that may be left out
            checked = _section(raw, section) or (section == "evaluations" and not raw.get(section))
            if isinstance(names, list) and checked:
                given = [name for name in names if isinstance(name, str)]
                lines += _dangling(f"tables.{printable(table_name)}.{key}", given, section, _section(raw, section))
        lines += _too_few_shards(raw, table, f"tables.{printable(table_name)}")
    return lines


def _too_few_shards(raw: dict, table: dict, where: str) -> list[str]:
    """Calibrations of a table that cannot choose a ridge, as nothing would be left when their shard is left out."""
    named = {key: table[key] if isinstance(table.get(key), list) else [] for key in ("fits", "calibrations")}
    fits = [name for name in named["fits"] if _entry(raw, "fits", name).get("ridge") == "auto"]
    few = [name for name in named["calibrations"] if _entry(raw, "calibrations", name).get("shards", 1) == 1]
    return [
        f"{where}: {fit!r} chooses its ridge by leaving out shards; set `shards: 2` or more for calibration {name!r}"
        for fit in fits
        for name in few
        if _entry(raw, "calibrations", name)
    ]


def _entry(raw: dict, section: str, name: Any) -> dict:
    return _section(_section(raw, section), name) if isinstance(name, str) else {}


def _section(raw: dict, name: Any) -> dict:
    return raw[name] if isinstance(raw.get(name), dict) else {}


def _dangling(where: str, names: list[str], section: str, defined: dict) -> list[str]:
    known = ", ".join(printable(name) for name in defined) or "none"
    lines = [
        f"{where}: {name!r} is not defined under {section}; defined: {known}" for name in names if name not in defined
    ]
    return lines + [f"{where}: {name!r} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]


def load(path: str | Path) -> Config:
    """Read and validate a config file."""
    return parse(read_yaml(path), str(path))
