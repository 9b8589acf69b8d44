"""The sections `evaluations` and `speed`."""

import re
import shlex
from typing import Literal

from pydantic import Field, field_validator, model_validator

from replaceme.config.base import Name, Strict
from replaceme.config.command_line import to_flags


class TaskConfig(Strict):
    """Options for one lm-eval task."""

    fewshot: int | None = Field(None, ge=0, description="Number of examples in the prompt; null: the task's own.")
    # a filter may follow a comma, as in `exact_match,strict-match`
    metric: str | None = Field(None, description="Metric of the table; null: acc_norm where the task has it, else acc.")
    in_average: bool = Field(True, description="Count the task in the average accuracy.")


# the metrics of each kind of labelled images, `<k>` a number
METRICS = {
    "classification": ("acc<k>", "mean_per_class_recall"),
    "multilabel": ("mean_average_precision",),
    "retrieval": ("image_retrieval_recall@<k>", "text_retrieval_recall@<k>"),
}


def kind_of(metric: str) -> str | None:
    """Return the kind of labelled images that a metric needs, None for an unknown metric."""
    form = re.sub(r"[1-9]\d*$", "<k>", metric) if "<" not in metric else None
    return next((kind for kind, forms in METRICS.items() if form in forms), None)


class ZeroShotConfig(Strict):
    """Labelled images for measuring image encoders with text encoders zero-shot (docs/method/evaluation.md)."""

    images: str = Field(
        description="Folder or Hub data set in clip-benchmark's layout (tar files of a split), or a folder with a "
        "subfolder of images for each class."
    )
    revision: str | None = Field(None, description="Hub data set revision.")
    split: str = Field("test", description="Subfolder that holds the split, where there is one.")
    prompts: str | None = Field(
        None,
        description="Data set of clip-benchmark whose prompts (and class names, where none lie beside the images) are "
        "used: `cifar10`; null: those beside the images, else `a photo of a {c}.`",
    )
    metrics: list[str] = Field(
        ["acc1"],
        min_length=1,
        description="Columns of the table, `<name>_<metric>`: of classes acc1, acc5 (any number), "
        "mean_per_class_recall; of several labels an image mean_average_precision; of captions "
        "image_retrieval_recall@5, text_retrieval_recall@5 (any number).",
    )
    in_average: bool = Field(True, description="Count the first of its metrics in the average.")

    @field_validator("metrics")
    @classmethod
    def _of_one_kind(cls, metrics: list[str]) -> list[str]:
        known = ", ".join(form for forms in METRICS.values() for form in forms)
        for metric in metrics:
            if kind_of(metric) is None:
                raise ValueError(f"{metric!r} is no metric; known: {known} (<k> a number)")
        if len({kind_of(metric) for metric in metrics}) > 1:
            raise ValueError("metrics of one kind of labels go together; split them over two data sets")
        if len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice; name it once")
        return metrics

    @model_validator(mode="after")
    def _captions_need_no_prompts(self) -> "ZeroShotConfig":
        if self.kind == "retrieval" and self.prompts is not None:
            raise ValueError("retrieval compares images with their captions; drop prompts")
        return self

    @property
    def kind(self) -> str:
        """Kind of labelled images that the metrics need: classification, multilabel or retrieval."""
        return kind_of(self.metrics[0])


class EvaluationConfig(Strict):
    """Benchmarks: of language models run by lm-eval, of encoders of images and texts with clip-benchmark."""

    tasks: dict[Name, TaskConfig] = Field({}, description="lm-eval tasks by name, with options.")
    zeroshot: dict[Name, ZeroShotConfig] = Field(
        {}, description="In place of `tasks`, for encoders of images and texts: labelled images by name."
    )
    include: str | None = Field(None, description="Folder of task YAMLs of your own.")
    perplexity: str | None = Field(None, description="Task that gives the perplexity column.")
    divergence: str | None = Field(
        None,
        description="Name under `calibrations`: text that no fit or healing has seen, on which the divergence of every "
        "shortened model's predictions from the original's is measured (columns KL and text ppl); null: it is not.",
    )
    batch_size: int | Literal["auto"] = Field(
        "auto",
        description="Requests, or images, per forward pass, at most; `auto`: as many requests as the device has room "
        "for (of images, and of text that is generated, 16).",
    )
    limit: int | None = Field(None, ge=1, description="First items of each task or data set only; null: all of them.")
    seed: int = Field(1234, ge=0, description="Seed of the few-shot examples.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of the forward pass; auto: the checkpoint's on a GPU, float32 on a CPU."
    )

    @model_validator(mode="after")
    def _of_one_kind(self) -> "EvaluationConfig":
        if bool(self.tasks) == bool(self.zeroshot):
            raise ValueError("give either tasks (language models) or zeroshot (encoders of images and texts)")
        of_tasks = {
            "include": None,
            "perplexity": None,
            "divergence": None,
            "seed": EvaluationConfig.model_fields["seed"].default,
        }
        unused = [key for key, default in of_tasks.items() if self.zeroshot and getattr(self, key) != default]
        if unused:
            raise ValueError(f"zeroshot takes no {unused[0]}; drop it")
        return self

    @model_validator(mode="after")
    def _perplexity_is_a_task(self) -> "EvaluationConfig":
        if self.perplexity is not None and self.perplexity not in self.tasks:
            raise ValueError(f"perplexity names {self.perplexity!r}, which is not among its tasks")
        return self

    @field_validator("batch_size")
    @classmethod
    def _one_or_more(cls, size: int | str) -> int | str:
        if size != "auto" and size < 1:
            raise ValueError("must be at least 1, or auto")
        return size

    @property
    def at_once(self) -> int:
        """Sequences or images per forward pass, where it is not the room of a device that limits them."""
        return 16 if self.batch_size == "auto" else self.batch_size

    @property
    def columns(self) -> list[str]:
        """Columns that it adds to a table, without their errors."""
        return [*self.tasks, *(column(name, one) for name, data in self.zeroshot.items() for one in data.metrics)]


# fields of named sections, for each of which an option is given once or more, as `name={...}`
NAMED = {"tasks": "task", "zeroshot": "zeroshot"}
OF_DIVERGENCE = ("divergence",)  # of a step of its own
OPTIONS = tuple(name for name in EvaluationConfig.model_fields if name not in (*NAMED, *OF_DIVERGENCE))


def evaluation_flags(section: EvaluationConfig) -> str:
    """Return the options of `replaceme evaluate` that describe a section, shell-quoted."""
    named = [
        f"--{option} {shlex.quote(f'{name}={one.model_dump_json(exclude_defaults=True)}')}"
        for field, option in NAMED.items()
        for name, one in getattr(section, field).items()
    ]
    return " ".join([*named, to_flags(section, OPTIONS)])


def column(name: str, metric: str) -> str:
    """Return the column name of a metric of labelled images."""
    return f"{name}_{metric}"


WALL, KERNELS = "wall", "kernels"


class SpeedConfig(Strict):
    """Options for measuring latency and throughput."""

    prompt_tokens: int = Field(256, ge=1, description="Length of the prompt, in tokens.")
    new_tokens: int = Field(32, ge=1, description="Tokens generated one by one after it.")
    batch_size: int = Field(1, ge=1, description="Sequences in flight.")
    repeats: int = Field(5, ge=1, description="Timed runs, of which the median counts.")
    warmup: int = Field(2, ge=0, description="Runs before the timed ones.")
    clock: Literal["wall", "kernels"] = Field(
        WALL,
        description="What is timed: `wall`, what one waits for; `kernels`, the time in which a GPU computes, which is "
        "what is left where starting kernels costs nothing (CUDA graphs, as servers use).",
    )
