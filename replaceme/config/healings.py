"""The section `healings`."""

from typing import Literal

from pydantic import Field, model_validator

from replaceme.config.base import Strict

DISTILLATION = "distillation"  # the objective that takes the original model too
LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


class TrainingConfig(Strict):
    """Options for training a shortened model."""

    train: Literal["transform", "lora", "full"] = Field(
        description="Parameters: transform, a T on the output of each carrier's down projection, folded into it; "
        "lora, adapters of low rank, merged into the weights (UIDL); full, all weights."
    )
    objective: Literal["text", "distillation"] = Field(
        "text",
        description="What is minimised: text, the loss of the next token; distillation, the KL divergence of the "
        "next-token distributions from those of the model before it was shortened, which is in memory too.",
    )
    steps: int = Field(ge=1, description="Steps of the optimiser (AdamW, betas 0.9 and 0.999).")
    learning_rate: float = Field(gt=0, description="Highest learning rate.")
    batch_size: int = Field(1, ge=1, description="Sequences per forward and backward pass.")
    accumulation: int = Field(1, ge=1, description="Such passes per step; their gradients are added.")
    warmup: int = Field(0, ge=0, description="First steps, over which the learning rate rises from 0.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine",
        description="Learning rate after that: constant, or falling to 0 at the end of a line or half a cosine.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay of what has two dimensions; a T decays to the identity."
    )
    clip: float | None = Field(
        1.0, gt=0, description="Largest norm of the gradient, longer ones are scaled; null: any."
    )
    lora_rank: int = Field(64, ge=1, description="Rank of the adapters, for `lora`.")
    lora_alpha: float | None = Field(
        None, gt=0, description="Their output is multiplied by lora_alpha / lora_rank; null: by 1."
    )
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Share of the adapters' inputs set to 0 in training.")
    lora_targets: Literal["mlp", "attention", "all"] = Field(
        "mlp", description="Linear layers of the blocks that get adapters: those of the MLP, all others, all."
    )
    held_out: int = Field(
        32,
        ge=1,
        description="Last sequences of the text, kept out of the training; the loss before and after is theirs.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the order of the sequences, of the adapters and of dropout."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Type of forward and backward passes; auto: the checkpoint's on a GPU, float32 on a CPU. What is "
        "trained, its gradients and the optimiser's moments are float32.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    checkpoint_seconds: float = Field(
        300.0, ge=0, description="Seconds between two checkpoints, from which an interrupted healing goes on."
    )

    @model_validator(mode="after")
    def _options_of_its_kind(self) -> "TrainingConfig":
        for name in LORA:
            if self.train != "lora" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"train {self.train} takes no {name}; drop it")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} leaves nothing of {self.steps} steps; lower it")
        return self


class HealingConfig(TrainingConfig):
    """The short training of a shortened model (docs/method/healing.md), for tables that name it."""

    text: str = Field(
        description="Name under `calibrations`, which says what the text is, how many sequences and how long."
    )
