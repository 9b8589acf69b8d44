"""Facts about the methods other than replaceme that a fit section needs.

Each has a model of its own, told from the others by the key `method`, which is the name of its module in the room
`methods`.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from replaceme.config.base import Strict
from replaceme.config.placement import WeightingOptions
from replaceme.config.solvers import GRADIENT, TrainedConfig, TrainingOptions
from replaceme.config.transforms import CLOSED_FORM


class MethodConfig(Strict):
    """Questions that every section of `fits` answers; by default as a method does that fits no T.

    `narrows`: all blocks stay, and get narrower. `by`: what finds its numbers, in a few words for a table.
    """

    narrows: ClassVar[bool] = False
    by: ClassVar[str]

    method: str

    @property
    def is_other(self) -> bool:
        """True for a method that fits no T."""
        return True

    @property
    def own_code(self) -> bool:
        """True if the model brings code of its own."""
        return True

    @property
    def of_whole_blocks(self) -> str | None:
        """Return what keeps its cuts to whole blocks; None: they may begin in the middle of one."""
        return f"method {self.method}"

    @property
    def needs_loss(self) -> bool:
        """True if it needs the language-model loss, and so the model's head."""
        return self.end_to_end

    @property
    def end_to_end(self) -> bool:
        """True if maps are trained through the model after their closed forms."""
        return False

    @property
    def unfitted(self) -> bool:
        """True if nothing is fitted and no text read."""
        return False

    @property
    def mlps(self) -> float:
        """Return how many MLPs' neurons are in the rows it regresses on; 0: these are as wide as the stream."""
        return 0.0

    def copies(self, groups: int) -> int:
        """Return how many times the states of the whole text are in host memory, for a cut of so many groups."""
        return 0

    def given(self, names: Iterable[str]) -> list[str]:
        """Return which of some options differ from their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


class _InOrder(MethodConfig):
    """A method that goes through the blocks in order."""

    estimation: Literal["parallel", "sequential"] = Field(
        "parallel", description="Estimate each block on the original model, or on the model with what was done so far."
    )

    def copies(self, groups: int) -> int:
        """Return the states before a block (see `methods.walk`)."""
        return 1


class SvdLlmConfig(_InOrder):
    """SVD-LLM: pairs of factors in place of the linear layers, as small as without the blocks of the cut."""

    narrows = True
    by = "closed form, truncated SVD"

    model_config = ConfigDict(title="method svd_llm")
    method: Literal["svd_llm"] = Field(description="svd_llm: pairs of factors in place of the linear layers.")


class LlmStreamlineConfig(TrainingOptions, MethodConfig):
    """LLM-Streamline: the carrier trained to do the work of the blocks of the cut."""

    by = "gradient, a whole block"

    model_config = ConfigDict(title="method llm_streamline")
    method: Literal["llm_streamline"] = Field(
        description="llm_streamline: the carrier trained to do the work of the blocks of the cut."
    )
    network: Literal["layer", "mlp"] = Field(
        "layer",
        description="Parameters: layer, a whole block; mlp, a block without attention (its MLP behind its norm, "
        "beside the residual stream), which is smaller.",
    )

    @property
    def own_code(self) -> bool:
        """Only a block without attention is of no architecture of transformers."""
        return self.network == "mlp"

    def copies(self, groups: int) -> int:
        """Count inputs and targets of the training, beside the states that come through."""
        return 1 + 2 * groups


class SliceGptConfig(_InOrder):
    """SliceGPT: a narrower residual stream, as small as without the blocks of the cut."""

    narrows = True
    by = "closed form, rotation"

    model_config = ConfigDict(title="method slicegpt")
    method: Literal["slicegpt"] = Field(description="slicegpt: a narrower residual stream.")


class LlmPrunerConfig(MethodConfig):
    """LLM-Pruner: fewer attention heads and MLP channels, as small as without the blocks of the cut."""

    narrows = True
    by = "nothing; gradients choose"

    model_config = ConfigDict(title="method llm_pruner")
    method: Literal["llm_pruner"] = Field(description="llm_pruner: fewer attention heads and MLP channels.")
    whole_first: int = Field(1, ge=0, description="First blocks that it leaves as they are.")
    whole_last: int = Field(
        1, ge=0, description="Last blocks, likewise; 0 of both: all blocks alike, so that the model needs no code."
    )

    @property
    def own_code(self) -> bool:
        """True unless all blocks get equally narrow, which config.json can say."""
        return self.whole_first > 0 or self.whole_last > 0

    @property
    def needs_loss(self) -> bool:
        """True: the loss chooses the heads and channels that go."""
        return True


class FlattenGptConfig(TrainedConfig, WeightingOptions, _InOrder):
    """FlattenGPT: the blocks of the cut side by side with the carrier, pruned back to one block's width."""

    model_config = ConfigDict(title="method flattengpt")
    method: Literal["flattengpt"] = Field(
        description="flattengpt: the blocks of the cut side by side with the carrier, the heads and neurons that say "
        "most kept, as many as one block has."
    )
    objective: Literal["l2", "kl"] = Field(
        "l2",
        description="l2: output and down projections by least squares; kl: then the down projections by the KL "
        "divergence of next-token distributions.",
    )
    ridge_relative: float = Field(
        0.001, gt=0, description="Ridge towards the old projections, in units of the Gram's mean diagonal."
    )
    shortlist: float = Field(
        1.0,
        gt=0,
        description="Neurons of the removed blocks among which are chosen, those that explain most beside the "
        "carrier's, as a multiple of one block's: 1 are all of one removed block; less takes less memory and two more "
        "passes through the carrier.",
    )

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> "FlattenGptConfig":
        foreign = () if self.end_to_end else self.given(TrainedConfig.model_fields)
        if foreign:
            raise ValueError(f"objective {self.objective} takes no {foreign[0]}; drop it")
        return self

    @property
    def by(self) -> str:
        """Return what finds its numbers."""
        return GRADIENT if self.end_to_end else CLOSED_FORM

    @property
    def own_code(self) -> bool:
        """False: a block of the same architecture is left."""
        return False

    @property
    def mlps(self) -> float:
        """Return the carrier's MLP and the shortlist."""
        return 1.0 + self.shortlist

    def copies(self, groups: int) -> int:
        """Count the states after the blocks of a group, beside those before them."""
        return 2


OTHERS: dict[str, type[MethodConfig]] = {
    "svd_llm": SvdLlmConfig,
    "llm_streamline": LlmStreamlineConfig,
    "slicegpt": SliceGptConfig,
    "llm_pruner": LlmPrunerConfig,
    "flattengpt": FlattenGptConfig,
}
NARROWING = tuple(name for name, model in OTHERS.items() if model.narrows)
