"""The section `cuts`."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from replaceme.config.base import Strict
from replaceme.config.metrics import (
    AFTER_FIT,
    REPRESENTATIONS,
    WITHOUT_FIT,
    by_position,
    described,
    every_metric,
    of_candidates,
)
from replaceme.config.units import PARAMETERS, UNITS, in_words
from replaceme.core.places import HALF, in_middle, plain

# searches with a metric of their own
OWN_METRIC = ("merging", "sublayers")
# searches that take blocks one by one, wherever they lie
SINGLE = ("independent", "iterative")
# what `search: merging` can be told
MERGING = ("merge_blocks", "interval", "similarity")
# what the measures of candidates depend on, beside the metric
OF_CANDIDATES = (
    "blocks", "ratio", "of", "groups", "search", "keep_first", "keep_last", *MERGING, "halves", "samples",
)  # fmt: skip


class CutConfig(Strict):
    """The choice of the blocks to remove."""

    blocks: int | None = Field(None, ge=1, description="Number of blocks to remove.")
    ratio: float | None = Field(
        None, gt=0, lt=1, description="Share of the model to remove, resolved to the nearest number of blocks."
    )
    of: Literal[*UNITS] = Field(
        PARAMETERS, description=f"Unit of the ratio (docs/method/cuts.md#ratios): {in_words()}."
    )
    groups: int = Field(
        1, ge=1, description="Number of runs into which the blocks to remove are split, one transform each."
    )
    adjacency: Literal["merge", "separate"] = Field(
        "merge",
        description="Groups that touch: merge, one group of them (Multi_LT of the paper); separate, "
        "at least one block is kept between any two (Multi_LT_NC).",
    )
    search: Literal["greedy", "dynamic", "independent", "iterative", "merging", "sublayers"] = Field(
        "greedy",
        description="Search for several groups: greedy, groups of one size, the least metric first (the paper); "
        "dynamic, at most so many groups of any sizes whose metric has the least sum; independent, the single blocks "
        "of least metric, wherever they lie, those that touch as one group (ShortGPT); iterative, single blocks one "
        "after another, each measured without those before it (SLEB; metric perplexity or taylor); merging, from the "
        "last blocks down, several become one wherever the model's output stays similar (LaCo; metric output); "
        "sublayers, single attentions and MLPs one after another, the least rise of metric kl_without for what each "
        "is of the unit `of` first, until as much of it is gone.",
    )
    keep_first: int = Field(
        1,
        ge=1,
        description="First blocks that stay, whatever their metric, for the searches of single blocks and merging.",
    )
    keep_last: int = Field(0, ge=0, description="Last blocks that stay, likewise.")
    merge_blocks: int = Field(4, ge=2, description="Blocks that merging makes one of at a time.")
    interval: int = Field(2, ge=1, description="Blocks by which merging moves down after a merge; 1 after none.")
    similarity: float | None = Field(
        None,
        ge=-1,
        lt=1,
        description="Cosine similarity of the model's last states to the original's above which merging keeps a "
        "merge; null: the greatest of 0.99, 0.98 ... at which enough blocks go.",
    )
    halves: bool = Field(
        False,
        description="Compare cuts that begin between the attention and the MLP of a block, and end so in another, "
        "beside those of whole blocks.",
    )
    start: int | float | None = Field(
        None,
        description="First block to remove, to place the cut by hand, or 4.5 for a cut that begins between the "
        "attention and the MLP of block 4; null: chosen by the metric.",
    )
    metric: Literal[*every_metric()] = Field("cosine_after_fit", description=described())
    position: Literal["all", "last"] = Field(
        "all", description="Tokens over which a distance is averaged: all unmasked ones, or the last of each sequence."
    )
    samples: int | None = Field(
        64,
        ge=1,
        description="Calibration sequences that the post-fit metrics fit on (loss and kl: and a quarter as many held "
        "out), or perplexity, taylor and output measure on; null: all of them.",
    )

    @field_validator("start")
    @classmethod
    def _a_place(cls, value: float | None) -> float | None:
        if value is not None and value % HALF:
            raise ValueError(f"{value} is no place to begin a cut: {value // 1:.0f} or {value // 1 + HALF} is")
        return None if value is None else plain(value)

    @model_validator(mode="after")
    def _one_size(self) -> "CutConfig":
        if (self.blocks is None) == (self.ratio is None):
            raise ValueError("give either blocks or ratio")
        if self.ratio is None and self._given("of") and self.search != "sublayers":
            raise ValueError(f"of {self.of} is the unit of a ratio; give ratio, or drop it")
        if self.start is not None and self.start < HALF:
            raise ValueError(f"start {self.start} leaves no carrier: block 0 stays, so start at 1 or later, or at 0.5")
        if self.metric not in by_position() and self.position != "all":
            raise ValueError(f"metric {self.metric} averages over all tokens; drop `position: {self.position}`")
        by_hand = [name for name in ("metric", "position", "samples", "halves") if self._given(name)]
        if self.start is not None and by_hand:
            raise ValueError(f"start places the cut by hand, nothing is measured; drop {by_hand[0]}")
        if self.metric not in of_candidates() and self.samples not in (64, None):
            raise ValueError(f"metric {self.metric} is of the whole calibration text; drop samples")
        return self

    @model_validator(mode="after")
    def _options_of_several_groups(self) -> "CutConfig":
        if self.start is not None and self.several:
            raise ValueError(f"start places one group by hand; drop {'groups' if self.groups > 1 else 'search'}")
        wanted = every_metric()[self.metric].search
        if wanted != (self.search if self.search in OWN_METRIC else None):
            search = wanted or self.search
            metric = next(name for name, one in every_metric().items() if one.search == search)
            raise ValueError(f"search {search} and metric {metric} go together; set both, or drop both")
        for name in MERGING:
            if self.search != "merging" and self._given(name):
                raise ValueError(f"{name} is about merging; drop it, or set `search: merging`")
        if self.search == "dynamic" and not every_metric()[self.metric].adds_up:
            raise ValueError("search dynamic adds the metric up, which perplexities do not; take loss, kl or taylor")
        if self.halves and self.metric == "taylor":
            raise ValueError("metric taylor is of whole blocks; drop halves, or take another metric")
        if self.single or self.search in OWN_METRIC:
            self._check_single()
            return self
        for name in ("keep_first", "keep_last"):
            if self._given(name):
                raise ValueError(f"{name} is about single blocks; drop it, or set `search: independent`")
        for name in ("adjacency", "search"):
            if self.groups == 1 and self._given(name):
                raise ValueError(f"{name} is about several groups; drop it, or set `groups: 2` or more")
        if self.blocks is not None and self.groups > self.blocks:
            raise ValueError(f"{self.blocks} blocks cannot be {self.groups} groups; lower groups")
        if self.blocks is not None and self.search == "greedy" and self.blocks % self.groups:
            raise ValueError(f"search greedy needs blocks that {self.groups} divides; change them, or search: dynamic")
        return self

    def _check_single(self) -> None:
        for name, value in (("groups", 1), ("adjacency", "merge")):
            if getattr(self, name) != value:
                raise ValueError(f"search {self.search} finds how many groups there are; drop {name}")
        if self.halves:
            raise ValueError(f"search {self.search} takes whole blocks; drop halves")
        if self.search == "iterative" and self.metric not in WITHOUT_FIT:
            raise ValueError(f"search iterative measures {' or '.join(WITHOUT_FIT)}; change metric")

    def _given(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default

    @property
    def single(self) -> bool:
        """True if blocks are taken one by one, wherever they lie."""
        return self.search in SINGLE

    @property
    def in_middle(self) -> bool:
        """True if the cut may begin in the middle of a block."""
        return self.halves or self.search == "sublayers" or (self.start is not None and in_middle(self.start))

    @property
    def own_code(self) -> bool:
        """True if blocks may lack their attention or MLP, for which the model brings code of its own."""
        return self.search == "sublayers"

    @property
    def several(self) -> bool:
        """True if there may be several groups."""
        return self.groups > 1 or self.single or self.search in OWN_METRIC

    @property
    def needs_candidates(self) -> bool:
        """True if the choice needs a measure of each candidate, rather than distances."""
        return self.start is None and self.metric in of_candidates()

    @property
    def fits_candidates(self) -> bool:
        """True if the choice fits a map for each candidate."""
        return self.start is None and self.metric in AFTER_FIT

    @property
    def needs_loss(self) -> bool:
        """True if the choice runs a whole model with its head: for its predictions, or the last states."""
        return self.start is None and every_metric()[self.metric].with_head

    @property
    def measured_as(self) -> str:
        """The first of the metrics that are measured together with this one, which stands for all of them."""
        known = every_metric()
        return next(name for name, one in known.items() if one.function == known[self.metric].function)

    @property
    def of_representations(self) -> bool:
        """True if the choice needs distances that are not measured by default."""
        return self.start is None and self.metric in REPRESENTATIONS

    @property
    def size(self) -> str:
        """Size as a path component: `6-blocks`, `0.25-ratio` or `0.25-decode`."""
        unit = "" if self.of == PARAMETERS else f"-{self.of}"
        return f"{self.blocks}-blocks{unit}" if self.blocks is not None else f"{self.ratio}{unit or '-ratio'}"

    @property
    def needs_costs(self) -> bool:
        """True if it needs to be known what the parts of the model cost in a unit other than parameters."""
        return self.of != PARAMETERS
