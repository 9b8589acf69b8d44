"""Summarise a shortening for a person: sizes, quality and time, and what to do next."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replaceme.config.methods import MethodConfig
from replaceme.core.cut_record import Cut
from replaceme.models.checkpoints import open_checkpoint, read_config
from replaceme.models.custom_code import is_separate
from replaceme.models.model_config import is_of_images
from replaceme.models.model_record import ModelRecord
from replaceme.models.probed import class_with_head
from replaceme.provenance.job_cost import peak_memory
from replaceme.surgery.model_card import fitted

SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
HALF_MARK = ".5"  # of a place in the middle of a block
OBJECTIVES = {
    "l2": "least squares",
    "cosine": "cosine distance",
    "cosine_exact": "exact cosine distance",
    "kl": "divergence of predictions",
}


@dataclass(frozen=True)
class Summary:
    """The figures of a shortening: sizes (before, after), seconds by stage, and peaks of memory.

    `removed` are the runs of blocks, `fit` names the fit, `placed` says what was put in place of the blocks.
    `predictions` are those of `fitting.held_out` with the `text` that they are of, or None. `loader` is the class of
    transformers that loads the folder `out`, `code` whether the folder brings code.
    """

    source: str
    out: str
    removed: str
    placed: str
    fit: str
    blocks: Sequence[int]
    parameters: Sequence[int]
    bytes: Sequence[int]
    residual: float | None
    predictions: dict[str, Any] | None
    seconds: dict[str, float]
    memory: dict[str, int | None]
    loader: str
    code: bool

    @property
    def record(self) -> dict[str, Any]:
        """Figures as plain values: `Summary(**record)` is the same."""
        return asdict(self)

    def _removed(self) -> str:
        within = HALF_MARK in self.removed
        return f"{self.removed} (k.5: between attention and MLP)" if within else f"blocks {self.removed}"

    def text(self) -> str:
        """Return the lines to print."""
        rows = [
            (
                "blocks",
                f"{self.blocks[0]} -> {self.blocks[1]}" + f", without {self._removed()}" * bool(self.placed),
            ),
            ("parameters", _change(self.parameters, "")),
            ("weights", _change(self.bytes, "B")),
            ("fit", self.fit + ("" if self.residual is None else f", residual {self.residual:.4g}")),
            *([("", self.placed)] if self.placed else []),
            *self._quality(),
            ("time", ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())),
            ("memory", self._memory()),
        ]
        width = max(len(name) for name, _ in rows) + 2
        lines = [f"{self.source}, shortened: {self.out}", *(f"  {name:{width}}{said}" for name, said in rows)]
        return "\n".join([*lines, "", "Next:", *(f"  {line}" for line in self._next())])

    def _quality(self) -> list[tuple[str, str]]:
        found = self.predictions
        if found is None:
            return []
        text = f"{found['tokens']} tokens {found['text']}"
        if "cosine" in found:
            return [("cosine", f"{found['cosine']:.4f} of its last states before and after, on {text}")]
        return [
            ("perplexity", f"{found['perplexity']:.4g} -> {found['perplexity_after']:.4g} on {text}"),
            ("divergence", f"{found['kl']:.4g} nats per token, of its predictions from the whole model's"),
        ]

    def _memory(self) -> str:
        gpu = self.memory["gpu_memory_bytes"]
        said = f"{_short(self.memory['memory_bytes'] or 0)}B at most"
        return said if gpu is None else f"{said}, {_short(gpu)}B on the GPU"

    def _next(self) -> list[str]:
        trusted, told = (", trust_remote_code=True", ",trust_remote_code=True") if self.code else ("", "")
        code = f"from transformers import {self.loader} as M; M.from_pretrained({self.out!r}{trusted})"
        plain = shlex.quote(self.out) == self.out
        load = f'python -c "{code}"' if plain else f"python -c {shlex.quote(code)}"
        if self.loader != "AutoModelForCausalLM":
            return [load]
        arguments = shlex.quote(f"pretrained={self.out}{told}")
        return [f"lm_eval --model hf --model_args {arguments} --tasks arc_easy,piqa", load]


def summarised(
    record: ModelRecord,
    out: str | Path,
    fit: MethodConfig,
    provenance: dict[str, Any],
    predictions: dict[str, Any] | None,
    seconds: dict[str, float],
) -> Summary:
    """Return the summary of a shortening into folder `out`, from its provenance record and what was measured."""
    cut, before, after = Cut.of(provenance["cut"]), open_checkpoint(record.folder), open_checkpoint(out, separate=True)
    return Summary(
        source=record.source,
        out=str(out),
        removed=cut.span,
        placed="" if fit.is_other else fitted(provenance).removeprefix("and "),
        fit=named(fit),
        blocks=(before.num_blocks, after.num_blocks),
        parameters=(before.parameters, after.parameters),
        bytes=(before.file_bytes, after.file_bytes),
        residual=provenance["fit"].get("residual"),
        predictions=predictions,
        seconds=seconds,
        memory=peak_memory(),
        loader=loader_of(before.config),
        code=is_separate(read_config(out)),
    )


def loader_of(config: dict[str, Any]) -> str:
    """Return the name of the class of transformers that loads a model and its head."""
    return "AutoModel" if is_of_images(config) else class_with_head(config).__name__


def named(fit: MethodConfig) -> str:
    """Return the name of a fit section for a summary."""
    if fit.is_other:
        return f"method {fit.method}"
    if fit.unfitted:
        return f"transform {fit.transform}: nothing fitted"
    what = [OBJECTIVES[fit.objective], f"placement {fit.placement}"]
    what += [] if fit.solver == "auto" else [f"solver {fit.solver}"]
    what += [] if fit.transform == "full" else [f"transform {fit.transform}"]
    what += [] if fit.recycle is None else [f"recycle {fit.recycle:g} from {fit.recycle_from}"]
    return ", ".join(what)


def _change(values: tuple[int, int], unit: str) -> str:
    before, after = values
    return f"{_short(before)}{unit} -> {_short(after)}{unit} ({(after - before) / before:+.1%})"


def _short(number: int) -> str:
    size, letter = next((one for one in SIZES if number >= one[0]), (1, ""))
    return f"{number / size:.3g} {letter}"
