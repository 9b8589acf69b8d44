"""Objectives of fits, and the solvers over stored rows: description, options and function of each.

A new solver is a file of the room `transforms` and an entry of SOLVERS: see docs/adding.md. An option of its own is a
field of SolverOptions.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from replaceme.config.base import Strict
from replaceme.config.transforms import CLOSED_FORM

GRADIENT = "gradient"


@dataclass(frozen=True)
class Solver:
    """A solver over rows; its function is named `module.function` of the room `transforms`, and imported when it runs.

    `function(given, objective, **options)` gives the transform (see `transforms.given_rows`), `options` being the keys
    that it can be told; `penalties` those that its objective can be. `square`: it starts from T = I. `by`: what finds
    T, in a few words for a table.
    """

    function: str
    description: str
    options: tuple[str, ...] = ()
    penalties: tuple[str, ...] = ()
    square: bool = True
    by: str = GRADIENT

    @property
    def takes(self) -> tuple[str, ...]:
        """All keys that a fit by it can be told."""
        return ("fit_tokens", *self.options, *self.penalties)


SOLVERS = {
    "auto": Solver(
        "cosine.fit_cosine",
        "the closed form for l2 and reweighted least squares for the others",
        ("iterations", "ridge_relative", "towards"),
        square=False,
        by=f"{CLOSED_FORM}, reweighted",
    ),
    "adam": Solver(
        "adam.fit_adam",
        "the paper's default",
        ("learning_rate", "batch_tokens", "epochs", "mask_ratio", "order_seed"),
        ("l1_alpha", "l2_alpha"),
    ),
    "nlcg": Solver("full_batch.fit_nlcg", "the paper's nonlinear conjugate gradients", ("iterations",), ("l2_alpha",)),
    "lbfgs": Solver("full_batch.fit_lbfgs", "the paper's L-BFGS", ("iterations",), ("l2_alpha",)),
    "trust_ncg": Solver(
        "full_batch.fit_trust_ncg", "the paper's trust-region Newton-CG", ("iterations",), ("l2_alpha",)
    ),
}


KL = "kl"  # the objective that is not of rows: it takes the whole model


class OrderOptions(Strict):
    """The order of a text in a training."""

    order_seed: int = Field(
        0,
        ge=0,
        description="Seed of the order in which Adam takes the text, for objective kl too, and of the tokens that it "
        "leaves out.",
    )


class TrainingOptions(OrderOptions):
    """Options of Adam over a text, or over the rows of one."""

    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of Adam.")
    batch_tokens: int = Field(1024, ge=1, description="Tokens of a batch of Adam.")
    epochs: int = Field(10, ge=1, description="Passes of Adam over the text.")


class AdamOptions(TrainingOptions):
    """Settings of the solver adam; the defaults are the paper's (Table 14)."""

    mask_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the tokens, drawn anew, that each epoch of adam leaves out (A.12)."
    )


class KlOptions(Strict):
    """Settings of the training of objective kl."""

    kl_steps: int = Field(300, ge=1, description="Steps of objective kl, at most.")
    kl_sequences: int = Field(4, ge=1, description="Sequences of a step of objective kl.")
    kl_learning_rate: float = Field(
        3e-4,
        gt=0,
        description="Highest learning rate of objective kl, after a warm-up and before a cosine decay; a training that "
        "begins with more divergence than its closed form begins again at a third of it.",
    )
    kl_checkpointing: bool = Field(
        False,
        description="For objective kl: compute activations again in the backward pass, which takes less memory and a "
        "third more time.",
    )


class TrainedConfig(KlOptions, OrderOptions):
    """A section whose maps can be trained through the model: one with an `objective`."""

    @property
    def end_to_end(self) -> bool:
        """True if the maps are trained through the model after their closed forms."""
        return self.objective == KL


class SolverOptions(Strict):
    """The objective, and how it is minimised."""

    objective: Literal["l2", "cosine", "cosine_exact", "kl"] = Field(
        "l2",
        description="Objective of the fit: l2 is least squares (eq. 6), cosine the mean cosine distance between M T "
        "and the target (eq. 8), cosine_exact that between M T + Y and the state after the cut (eq. 7); a full T over "
        "stored rows but for l2. kl starts from l2 and minimises the KL divergence of the shortened model's "
        "next-token distributions from the whole model's, by gradient steps on T alone (language models).",
    )
    solver: Literal[tuple(SOLVERS)] = Field(
        "auto",
        description=f"How: {'; '.join(f'{name}, {one.description}' for name, one in SOLVERS.items())}. All but auto go "
        "from T = I.",
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
    l1_alpha: float = Field(
        0.0, ge=0, description="Penalty on the sum of |T_ij|, in units of the mean loss, of adam (eq. 9)."
    )
    l2_alpha: float = Field(
        0.0,
        ge=0,
        description="Penalty on the sum of T_ij^2, in units of the mean loss, of the gradient solvers (eq. 9).",
    )

    @property
    def needs_rows(self) -> bool:
        """True if sums are not enough and the fit reads stored rows."""
        return self.objective not in ("l2", KL) or self.solver != "auto"

    @property
    def needs_state(self) -> bool:
        """True if those rows hold the residual stream too."""
        return self.objective == "cosine_exact"
