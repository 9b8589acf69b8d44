"""Estimate a job's host memory and time for a scheduler, from the size of its model and the text that it reads.

    bytes   = BASE + copies * weights + squares * 8 width^2 + activations + text, pixels and states that wait
    seconds = START + SLACK * (2 parameters * tokens * passes / FORWARD_RATE + 2 width^3 * solves / SOLVE_RATE
                               + disk * stored / DISK_RATE + text / TEXT_RATE)

TABLE says for each rule how many copies, matrices, passes and solves. An estimate is meant to be enough, not to be
close; a repeated job gets twice as much. Nothing here imports torch or asks the Hub.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from replaceme.config.calibrations import ModelConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.models.checkpoints import local_folder, names_folder, read_config
from replaceme.models.model_config import pick_dtype, stored_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.models.other_formats import is_gguf
from replaceme.models.packed_folder import without_packing
from replaceme.models.sizes import ITEM_BYTES, MARGIN
from replaceme.planning.outline import Outline, estimated_outline, outline_at, vocabulary

BASE = 1.5e9  # bytes: torch, transformers and lm-eval without a model
START = 300.0  # seconds: imports from a slow disk, a node that wakes up
DISK_RATE = 1e8  # bytes a second, of a network disk or a download
FORWARD_RATE = {"cuda": 1e14, "cpu": 2e10}  # operations a second that forward passes reach: an A100, one core
SOLVE_RATE = {"cuda": 1e11, "cpu": 1e10}  # of float64 factorisations, likewise
TEXT_RATE = 2e4  # tokens a second, read and tokenised
SLACK = 3.0  # times the estimated seconds
SHARD = 10e9  # bytes of a file of weights, at most


@dataclass(frozen=True)
class Need:
    """The needs of a rule's jobs, in units of their model and text.

    copies: of the model's weights in host memory. shards: of its files of weights. squares: float64 matrices [width,
    width]. passes: forward passes over the job's tokens (a backward pass counts as two). solves: dense factorisations.
    disk: times that the stored weights are read or written. host: whether it runs on the CPU, in float32, or may have
    to where the others run on a GPU. logits: whether positions have a row of the vocabulary each.
    """

    copies: float = 0.0
    shards: float = 0.0
    squares: float = 0.0
    passes: float = 0.0
    solves: float = 0.0
    disk: float = 0.0
    host: bool = False
    logits: bool = False


TABLE = {
    "dequantise": Need(shards=1, disk=8),  # unpacked at a tenth of the speed of a disk
    "model": Need(disk=2),  # downloaded, hashed
    "tokens": Need(),
    "mix": Need(),
    "generate": Need(copies=1, passes=1, disk=1, logits=True),
    "enough": Need(copies=1, passes=2, disk=1, squares=6, solves=30),
    "distances": Need(copies=1, passes=2, disk=1),
    "parts": Need(copies=1, passes=1, disk=1, logits=True),
    "parts_counted": Need(),  # without weights
    "candidates": Need(copies=1, passes=2, disk=1, logits=True),
    "gram": Need(copies=1, passes=2, disk=1, squares=4),
    "recycle": Need(squares=6, solves=4),
    "recycle_removed": Need(copies=1, passes=4, disk=1, squares=6, solves=12),  # two passes
    "sum": Need(squares=8),  # the sum, one that is added and two that are read
    "rows": Need(copies=1, passes=2, disk=1),
    "transform": Need(squares=12, solves=20),
    "transform_by_passes": Need(copies=1, passes=6, disk=1, squares=12, solves=20),  # its statistics come from passes
    "transform_end_to_end": Need(copies=1, passes=6, disk=1, squares=12, solves=20, logits=True),
    "merge": Need(shards=1, squares=4, disk=3),
    "verify": Need(copies=1, disk=4, host=True, logits=True),
    "export": Need(copies=3, disk=6, host=True, logits=True),  # a conversion and its result, besides transformers
    "evaluate": Need(copies=1, passes=1, disk=1, logits=True),
    "divergence": Need(copies=2, passes=2, disk=2, logits=True),  # of the original and of the shortened model
    "speed": Need(copies=1, passes=1, disk=1, logits=True),
    "heal": Need(copies=1, passes=4, disk=2, logits=True),  # backward passes, some of them after a second forward one
    "heal_distilled": Need(copies=2, passes=5, disk=4, logits=True),  # the original model beside it
}
TRAINED_BYTES = 16  # of each trained parameter: itself, its gradient and two moments, float32


@dataclass(frozen=True)
class Work:
    """The work of one job with its model.

    tokens: through the model, in all. positions: of them, at once. text: tokens to be read and tokenised. width: of the
    matrices, where it is not the model's. groups: sets of such matrices. squares: matrices beyond those of TABLE.
    trained: parameters with optimiser. pixels: values of images in host memory, float32. waiting: values of states that
    wait there, in the type of the forward passes. dtype: as configured for these.
    """

    tokens: float = 0.0
    positions: int = 0
    text: float = 0.0
    width: int = 0
    groups: int = 1
    squares: float = 0.0
    trained: float = 0.0
    pixels: float = 0.0
    waiting: float = 0.0
    dtype: str = "auto"


@dataclass(frozen=True)
class Needs:
    """Host memory in MB (10^6 bytes) and time in minutes."""

    mem_mb: int
    runtime: int


def needs(rule: str, outline: Outline, work: Work, device: str) -> Needs:
    """Return the needs of a job by its entry of TABLE; `device` is `cuda` or `cpu`.

    On a GPU the weights pass through the host's memory once, so one copy of the stored weights is needed.
    """
    need = TABLE[rule]
    device = "cpu" if need.host else device
    kind = "float32" if need.host else pick_dtype(work.dtype, device, outline.config)
    width = work.width or outline.hidden_size
    matrices = 8 * width**2 * (need.squares * work.groups + work.squares)
    row = vocabulary(outline.config) if need.logits else 8 * outline.hidden_size
    activations = 4 * work.positions * row if device == "cpu" else 0
    samples = 64 * work.text + 4 * work.pixels + ITEM_BYTES.get(kind, 4) * work.waiting
    weights = need.copies * (MARGIN * outline.bytes_in(kind) if device == "cpu" else outline.file_bytes)
    weights += need.shards * min(outline.file_bytes, SHARD)
    training = work.trained * TRAINED_BYTES if device == "cpu" else 0
    operations = 2 * outline.parameters * work.tokens * need.passes / FORWARD_RATE[device]
    seconds = operations + 2 * width**3 * need.solves / SOLVE_RATE[device]
    seconds += need.disk * outline.file_bytes / DISK_RATE + work.text / TEXT_RATE
    held = BASE + weights + matrices + activations + training + samples
    return Needs(ceil(held / 1e8) * 100, ceil((START + SLACK * seconds) / 60))


# a model of which nothing is known yet: as large as those of the paper
UNKNOWN = Outline("unknown", {"vocab_size": 128_256, "dtype": "bfloat16"}, 32, 4096, 8e9, [220_000_000] * 32, 16e9)


def outline_for(section: ModelConfig, record: str | Path) -> Outline | None:
    """Return the outline of a model from local files; None for a Hub model without any here.

    The sources are the headers of a folder; for a Hub model or a GGUF file `record` (model.json) once it exists, else
    config.json in the Hub's cache, from which the parameters are estimated.
    """
    try:
        of_gguf = is_gguf(local_folder(section.source))  # which takes seconds to open
        if names_folder(section.source) and not of_gguf:
            return outline_at(section.source, section.dequantise)
        if Path(record).is_file():
            return _of_record(ModelRecord.load(record))
        if of_gguf:
            return None
        config = _cached_config(section)
        config = config and (without_packing(config) if section.dequantise else config)
        return None if config is None else estimated_outline(section.source, config)
    except (ReplaceMeError, KeyError, OSError):
        return None  # the step that opens it says why


def _of_record(record: ModelRecord) -> Outline:
    config = read_config(record.folder)
    stored = record.parameters * ITEM_BYTES.get(stored_dtype(config), 4)
    sizes = (record.num_blocks, record.hidden_size, record.parameters, record.block_parameters)
    return Outline(record.source, config, *sizes, round(stored))


def _cached_config(section: ModelConfig) -> dict[str, Any] | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(section.source, "config.json", revision=section.revision)
    return read_config(Path(found).parent) if isinstance(found, str) else None
