"""The fit of a model for which none is asked, and the metric of its cut: on a GPU what keeps most of a real model.

Elsewhere it is least squares, and the metric of every config.

The recommended fit trains one matrix through the blocks that stay, which takes a minute on a GPU and hours on a CPU. It
needs a dense model in the GPU's memory, with room for the gradients (docs/real-models.md).
"""

import logging
from typing import Any

from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import free_memory
from replaceme.models.model_config import check_fit, is_encoder, pick_device, pick_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.models.sizes import ITEM_BYTES

log = logging.getLogger(__name__)
RECOMMENDED = FitConfig(objective="kl", placement="down_proj", weighting="inverse_energy", ridge_relative=0.001)
METRIC = "kl"  # that foretells most of it (docs/method/cuts.md)
ROOM = 3.0  # times a model's weights, free on a GPU


def default_fit(
    record: ModelRecord, config: dict[str, Any], forward: CalibrationConfig, device: str, gpus: int = 1
) -> FitConfig:
    """Return the fit to take for a model on a device, `auto` included, and log which it is; `forward` says how the
    model runs.
    """
    why_not = _why_not(record, config, forward, pick_device(device), gpus)
    if why_not is None:
        log.info(
            "fit: the recommended one, the down projection trained end to end; `--objective l2` for least squares, "
            "which takes seconds"
        )
        return RECOMMENDED
    log.info("fit: least squares, as %s (see docs/real-models.md for what keeps more)", why_not)
    return FitConfig()


def default_cut(cut: CutConfig) -> CutConfig:
    """Return the cut beside the recommended fit: where nothing says how to choose it, by the divergence after a fit."""
    if cut.start is not None or {"metric", "position", "search"} & cut.model_fields_set:
        return cut
    log.info("cut: by metric %s, held out, after a fit of every candidate; `--metric cosine` takes one pass", METRIC)
    return CutConfig(**cut.model_dump(exclude_unset=True), metric=METRIC)


def _why_not(
    record: ModelRecord, config: dict[str, Any], forward: CalibrationConfig, device: str, gpus: int
) -> str | None:
    """Return why the recommended fit is not for a model on a device, None where it is."""
    if is_encoder(config):
        return "the model has no next token"
    if device == "cpu":
        return "training takes long without a GPU"
    if forward.samples == 1:
        return "training takes two sequences or more"
    if forward.load_in_4bit or forward.streaming == "always":
        return "training takes all of the model, in its own type"
    try:
        check_fit(config, record.source, RECOMMENDED.placement)
    except ReplaceMeError:
        return "its blocks have no one down projection"
    size = ROOM * record.parameters * ITEM_BYTES[pick_dtype(forward.dtype, device, config)]
    if size > free_memory(device, gpus):
        return f"training takes {size / 1e9:.1f} GB of the GPU's memory, and less is free"
    return None
