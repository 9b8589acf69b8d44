"""The sections `evaluations` and `speed`."""

from typing import Literal

from pydantic import Field, model_validator

from replaceme.config.base import Name, Strict


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
