"""`replaceme.prune` and `replaceme.heal`: make a checkpoint from a model and some text, without Snakemake.

The same functions as the steps: tokens -> distances or candidates -> cut -> gram -> fit -> fold -> verify (see
`pruning`).
"""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from replaceme.arguments import check_arguments, checked_text
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.healings import TrainingConfig
from replaceme.config.methods import MethodConfig
from replaceme.config.units import PARAMETERS
from replaceme.core.errors import ReplaceMeError
from replaceme.core.stages import Stages
from replaceme.core.validation import validated
from replaceme.models.checkpoints import read_config
from replaceme.pruning import (
    calibration_of,
    checked_request,
    checking,
    load,
    opened,
    say_how_long,
    shorten,
    tokens_of,
    with_costs,
)


def prune(
    source: str | Path,
    calibration: CalibrationConfig | None = None,
    *,
    out: str | Path,
    revision: str | None = None,
    dequantise: bool = False,
    texts: Iterable[str] | str | Path | None = None,
    images: str | Path | None = None,
    blocks: int | None = None,
    ratio: float | None = None,
    of: str = PARAMETERS,
    costs: str | Path | None = None,
    cut: CutConfig | None = None,
    fit: MethodConfig | None = None,
    device: str = "auto",
    gpus: int = 1,
    verify: bool = True,
) -> dict[str, Any]:
    """Remove a run of blocks from `source`, fold the fitted transform into the carrier, save to folder `out`.

    `source` is a folder, or a Hub id with a `revision`; `dequantise`: a quantised one, or a GGUF file, of which plain
    weights are made first, beside `out` and only for this call. Calibration text: `texts`, an iterable of strings or
    the path of a .txt, .jsonl or .parquet file; for an encoder `images`, a folder; or a whole `calibration` section.
    Size: `blocks`, `ratio` (of the parameters, or in another unit `of`), or a `cut` section. `costs`: the file of
    `replaceme parts` for another unit; without it they are counted or measured first. `fit` defaults to the recommended
    one on a GPU that has room for it, with a cut by `metric: kl` where nothing says how, else to least squares (see
    `fitting.recommended`). `gpus`: over how many of them the model is spread. `verify`: load the result in a fresh
    process and compare it with the original (see `verification.verify`; some seconds, and either model in float32 in
    memory; not done for encoders). Returns the provenance record that is also written to `out`/replaceme.json, and with
    it, under `summary` and not written, what a person wants to know: sizes, perplexity and divergence on text that
    follows the calibration's in its source, times (see `reports.summary`). Raises ReplaceMeError on bad input, before
    any forward pass where possible, and when the result is not right.
    """
    from replaceme.reports.summary import summarised

    given = {"calibration": calibration, "out": out, "device": device, "gpus": gpus, "verify": verify}
    of_size = {"blocks": blocks, "ratio": ratio, "of": of, "costs": costs, "cut": cut, "fit": fit}
    of_model = {"source": source, "revision": revision, "dequantise": dequantise}
    check_arguments("prune", images=images, **of_model, **of_size, **given)
    texts = checked_text("prune", calibration, texts, images)
    if cut is not None and (blocks, ratio, of) != (None, None, PARAMETERS):
        raise ReplaceMeError("prune: give either a cut section or blocks or ratio")
    cut = cut or validated(CutConfig, {"blocks": blocks, "ratio": ratio, "of": of}, "prune")
    stages = Stages()
    with opened(str(source), revision, dequantise, out, stages) as record:
        asked = checked_request(record, out, cut, fit, (calibration, texts, images), (device, gpus))
        asked = with_costs(asked, costs, (device, gpus), stages)
        with checking(asked) if verify else nullcontext() as check:
            loaded = load(asked, device, gpus, stages)
            device = loaded.device
            say_how_long(loaded.passes, asked, stages.seconds["load"] * (0.5 if check is None else 2.5))
            chosen, found, predictions, provenance = shorten(asked, loaded, out, stages)
            del loaded  # both models are loaded again
            if check is not None:
                with stages("check"):
                    check(chosen, found, out, device)
        summary = summarised(record, out, asked.fit, provenance, predictions, stages.seconds)
        return {**provenance, "summary": summary.record}


def heal(
    folder: str | Path,
    calibration: CalibrationConfig | None = None,
    *,
    out: str | Path,
    training: TrainingConfig,
    texts: Iterable[str] | str | Path | None = None,
    original: str | Path | None = None,
    device: str = "auto",
    gpus: int = 1,
    verify: bool = True,
) -> dict[str, Any]:
    """Train the checkpoint that `prune` or `merge` wrote to `folder`, and save the result to folder `out`.

    Text and `gpus` as for `prune`. `training` says what is trained, for how long and how; an interrupted call goes on
    where it was when it is made again. A distillation is from the `original` model, by default the source in the
    folder's record. Returns the report: options, losses (nats per token), checks (None without `verify`).
    Raises ReplaceMeError on bad input, and when the result is not right.
    """
    from replaceme.healing.heal import Output, heal_checkpoint
    from replaceme.models.model_config import longest_sequence, pick_device

    given = {"calibration": calibration, "out": out, "device": device, "gpus": gpus, "verify": verify}
    check_arguments("heal", folder=folder, training=training, original=original, **given)
    texts = checked_text("heal", calibration, texts, None)
    longest = longest_sequence(read_config(folder), str(folder))
    calibration = calibration_of(calibration, texts, None, longest)
    tokens, _, metadata = tokens_of(calibration, texts, str(folder))
    metadata = {"tokens": calibration.tokens, **metadata}
    output = Output(out, verify=verify)
    return heal_checkpoint(folder, tokens, metadata, training, output, pick_device(device), gpus, original)
