"""`replaceme.prune`: a model and some text in, a shorter checkpoint out, in one process and without Snakemake.

The same functions as the steps, called one after another: tokens -> distances or candidates -> cut -> gram -> fit ->
fold -> verify.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from replaceme.checkpoints import model_sha256, read_config, resolve
from replaceme.config import CalibrationConfig, CutConfig, FitConfig
from replaceme.errors import ReplaceMeError
from replaceme.validation import validated


def prune(
    source: str | Path,
    calibration: CalibrationConfig | None = None,
    *,
    out: str | Path,
    revision: str | None = None,
    texts: Iterable[str] | str | Path | None = None,
    images: str | Path | None = None,
    blocks: int | None = None,
    ratio: float | None = None,
    cut: CutConfig | None = None,
    fit: FitConfig | None = None,
    device: str = "auto",
    verify: bool = True,
) -> dict[str, Any]:
    """Remove a run of blocks from `source`, fold the fitted transform into the carrier, save to folder `out`.

    `source` is a folder, or a Hub id with a `revision`. Calibration text: `texts`, an iterable of strings or the path
    of a .txt, .jsonl or .parquet file; for an encoder `images`, a folder; or a whole `calibration` section. Size:
    `blocks`, `ratio` (of the parameters), or a `cut` section. `fit` defaults to least squares. `verify`: load the
    result in a fresh process and compare it with the original (see `replaceme.verify`; some seconds, and either model
    in float32 in memory; not done for encoders). Returns the provenance record that is also written to
    `out`/replaceme.json.
    Raises ReplaceMeError on bad input, before any forward pass where possible, and when the result is not right.
    """
    from replaceme.cuts import groups_of, possible_spans
    from replaceme.fitting import Passes, fit_cut
    from replaceme.fold import write_pruned
    from replaceme.loading import load_model
    from replaceme.methods import fit_method, write_found
    from replaceme.models import (
        check_calibration,
        check_cut,
        check_length,
        check_section,
        family_of,
        longest_sequence,
        pick_device,
        pick_dtype,
        stored_dtype,
    )
    from replaceme.writing import check_out

    if cut is not None and (blocks is not None or ratio is not None):
        raise ReplaceMeError("prune: give either a cut section or blocks or ratio")
    cut = cut or validated(CutConfig, {"blocks": blocks, "ratio": ratio}, "prune")
    fit = fit or FitConfig()
    record = resolve(str(source), revision)
    check_out(record["folder"], out)
    possible_spans(cut, record)
    config = read_config(record["folder"])
    calibration, texts = _calibration(calibration, texts, images, longest_sequence(config, str(source)))
    check_calibration(config, calibration, str(source))
    check_cut(config, cut, str(source))
    check_length(config, calibration.tokens, str(source))
    check_section(config, fit, str(source))
    tokens, metadata = _tokens(calibration, texts, record["folder"])
    device = pick_device(device)
    dtype = pick_dtype(calibration.dtype, device, config)
    model = load_model(record["folder"], dtype, device, cut.needs_loss, calibration.streaming)
    family = family_of(config, str(source))
    chosen = _choose(model, family, tokens, record, cut, calibration.batch_size)
    stored = stored_dtype(config)
    passes = Passes(model.base_model, family, tokens, calibration.batch_size, stored, calibration.shards)
    if fit.is_other:
        found, write = fit_method(passes, fit, chosen, record), write_found
    else:
        found, write = (
            fit_cut(fit, groups_of(chosen), record["hidden_size"], None, lambda: passes, family),
            write_pruned,
        )
    digest = model_sha256(record)
    origin = {"model_sha256": digest, "tokens_sha256": tokens.digest(), "calibration": metadata}
    origin |= {"dtype": dtype, "batch_size": calibration.batch_size}
    provenance = write(record, {**chosen, "model_sha256": digest}, found, out, origin)
    if verify and family.modality == "text":
        from replaceme.verify import require_passed
        from replaceme.verify import verify as checked

        del model, passes  # both models are loaded again, in turn
        require_passed(checked(record, chosen, found, out))
    return provenance


def _calibration(
    calibration: CalibrationConfig | None,
    texts: Iterable[str] | str | Path | None,
    images: str | Path | None,
    longest: int | None,
) -> tuple[CalibrationConfig, list[str] | None]:
    """The calibration section, and the texts where they were given as strings."""
    if sum(given is not None for given in (calibration, texts, images)) != 1:
        raise ReplaceMeError("prune: give either texts or calibration (for an encoder: images or calibration)")
    if calibration is not None:
        return calibration, None
    if images is not None:
        return CalibrationConfig(images=str(images)), None
    usual = CalibrationConfig.model_fields["tokens"].default
    length = min(usual, longest or usual)
    if isinstance(texts, str | Path):
        return CalibrationConfig(dataset=str(texts), tokens=length), None
    texts = list(texts)
    return CalibrationConfig(dataset="texts given", samples=max(1, len(texts)), tokens=length), texts


def _tokens(calibration: CalibrationConfig, texts: list[str] | None, folder: str):
    from replaceme.data import calibration_for, tokens_from_texts
    from replaceme.loading import load_tokenizer

    if texts is None:
        return calibration_for(folder, calibration)
    tokenizer = load_tokenizer(folder)
    return tokens_from_texts(texts, tokenizer, calibration.samples, calibration.tokens), {"dataset": "texts given"}


def _choose(model, family, tokens, record, cut: CutConfig, batch_size: int) -> dict[str, Any]:
    from replaceme.candidates import candidates_of
    from replaceme.cuts import choose
    from replaceme.distances import measure

    distances = candidates = None
    if cut.post_fit:
        candidates = candidates_of(cut, record, model, family, tokens, batch_size)["candidates"]
    elif cut.start is None:
        distances = measure(model.base_model, family, tokens, batch_size, cut.of_representations)
    return choose(cut, record, distances, candidates)
