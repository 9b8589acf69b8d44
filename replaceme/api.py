"""`replaceme.prune` and `replaceme.heal`: make a checkpoint from a model and some text, without Snakemake.

The same functions as the steps: tokens -> distances or candidates -> cut -> gram -> fit -> fold -> verify. Two things
are faster here than as jobs of their own, and give the same: a cut by distance and the evidence of its fit share one
forward pass where they can (`one_pass`), and unchanged tensors are copied to `out` meanwhile (`writing.Merger`).
"""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.arguments import check_arguments, checked_text
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig, widest
from replaceme.config.healings import TrainingConfig
from replaceme.config.methods import MethodConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.core.stages import Stages, rounded
from replaceme.core.validation import validated
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    from torch import nn

    from replaceme.calibration.samples import Samples
    from replaceme.calibration.tokens import Tokens
    from replaceme.core.cut_record import Cut
    from replaceme.fitting.fit_cut import Passes
    from replaceme.methods.found import Found
    from replaceme.models.family import Family
    from replaceme.surgery.write_checkpoint import Merger
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)


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
    fit: MethodConfig | None = None,
    device: str = "auto",
    gpus: int = 1,
    verify: bool = True,
) -> dict[str, Any]:
    """Remove a run of blocks from `source`, fold the fitted transform into the carrier, save to folder `out`.

    `source` is a folder, or a Hub id with a `revision`. Calibration text: `texts`, an iterable of strings or the path
    of a .txt, .jsonl or .parquet file; for an encoder `images`, a folder; or a whole `calibration` section. Size:
    `blocks`, `ratio` (of the parameters), or a `cut` section. `fit` defaults to least squares. `gpus`: over how many of
    them the model is spread. `verify`: load the result in a fresh process and compare it with the original (see
    `verification.verify`; some seconds, and either model in float32 in memory; not done for encoders). Returns the
    provenance record that is also written to `out`/replaceme.json, and in it, under `summary`, what a person wants to
    know: sizes, perplexity and divergence on text that follows the calibration's in its source, times (see
    `reports.summary`).
    Raises ReplaceMeError on bad input, before any forward pass where possible, and when the result is not right.
    """
    from replaceme.activations.open_model import load_model
    from replaceme.cuts.choose import possible_spans
    from replaceme.fitting.fit_cut import Passes
    from replaceme.methods.registry import check_section
    from replaceme.methods.saving import finish_found
    from replaceme.models.loading import Held
    from replaceme.models.model_config import (
        check_calibration,
        check_cut,
        check_length,
        family_of,
        longest_sequence,
        pick_device,
        pick_dtype,
        stored_dtype,
    )
    from replaceme.reports.summary import summarised
    from replaceme.surgery.fold import finish_pruned
    from replaceme.surgery.write_checkpoint import check_out, merging

    given = {"calibration": calibration, "out": out, "device": device, "gpus": gpus, "verify": verify}
    of_size = {"blocks": blocks, "ratio": ratio, "cut": cut, "fit": fit}
    check_arguments("prune", source=source, revision=revision, images=images, **of_size, **given)
    texts = checked_text("prune", calibration, texts, images)
    if cut is not None and (blocks is not None or ratio is not None):
        raise ReplaceMeError("prune: give either a cut section or blocks or ratio")
    cut = cut or validated(CutConfig, {"blocks": blocks, "ratio": ratio}, "prune")
    fit = fit or FitConfig()
    record = resolve(str(source), revision)
    check_out(record.folder, out)
    possible_spans(cut, record)
    config = read_config(record.folder)
    calibration = _calibration(calibration, texts, images, longest_sequence(config, str(source)))
    check_calibration(config, calibration, str(source))
    check_cut(config, cut, str(source))
    check_length(config, calibration.tokens, str(source))
    check_section(config, fit, str(source))
    stages, family = Stages(), family_of(config, str(source))
    with stages("load"):
        tokens, held_out, metadata = _tokens(calibration.at_most, texts, record.folder)
        device = pick_device(device)
        dtype = pick_dtype(calibration.dtype, device, config)
        held = Held(gpus, calibration.load_in_4bit, calibration.streaming)
        # with its head, to say what its predictions lose, unless that is what makes it too large
        head = cut.needs_loss or fit.needs_loss or (None if family.modality == "text" else False)
        model = load_model(record.folder, dtype, device, head, held)
    if calibration.automatic:
        with stages("enough"):
            tokens, metadata = _enough(model, family, tokens, metadata, calibration, fit)
    sizes = (calibration.batch_size, stored_dtype(config), calibration.shards)
    headed = None if head is False or hasattr(model, "streamed") else model
    passes = Passes(model.base_model, family, tokens, *sizes, headed=headed)
    digest, verify = record.sha256, verify and family.modality == "text"
    _say_how_long(passes, record, cut, fit, stages.seconds["load"] * (2.5 if verify else 0.5))
    origin = Origin(digest, tokens.digest(), metadata, held.of_type(dtype), calibration.batch_size)
    with merging(record.folder, out, record.files, device) as merger:
        chosen, found = choose_and_fit(model, passes, record, cut, fit, merger, stages)
        with stages("compare"):
            predictions = _predictions(passes, chosen, found, held_out)
        with stages("write"):
            finish = finish_found if fit.is_other else finish_pruned
            provenance = finish(merger, record, replace(chosen, model_sha256=digest), found, origin)
    if verify:
        from replaceme.verification.verify import require_passed
        from replaceme.verification.verify import verify as checked

        del model, passes, headed  # both models are loaded again, in turn
        with stages("check"):
            require_passed(checked(record, chosen, found, out, device=device))
    measured = (predictions, stages.seconds)
    return {**provenance, "summary": summarised(record, out, fit, provenance, *measured).record}


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
    calibration = _calibration(calibration, texts, None, longest)
    tokens, _, metadata = _tokens(calibration, texts, str(folder))
    metadata = {"tokens": calibration.tokens, **metadata}
    output = Output(out, verify=verify)
    return heal_checkpoint(folder, tokens, metadata, training, output, pick_device(device), gpus, original)


def _calibration(
    calibration: CalibrationConfig | None, texts: list[str] | str | None, images: str | Path | None, longest: int | None
) -> CalibrationConfig:
    """Return the given section, or that of texts or images."""
    if calibration is not None:
        return calibration
    if images is not None:
        return CalibrationConfig(images=str(images))
    usual = CalibrationConfig.model_fields["tokens"].default
    length = min(usual, longest or usual)
    if isinstance(texts, str):
        return CalibrationConfig(dataset=texts, tokens=length)
    return CalibrationConfig(dataset="texts given", samples=max(1, len(texts)), tokens=length)


def _tokens(
    calibration: CalibrationConfig, texts: list[str] | str | None, folder: str
) -> "tuple[Samples, Tokens | None, dict[str, Any]]":
    """Return the calibration text or images, text that comes after it in its source if there is some, and its
    record.
    """
    from replaceme.calibration.tokens import calibration_and_more, check_vocabulary, tokens_from_texts
    from replaceme.fitting.held_out import SEQUENCES
    from replaceme.models.loading import load_tokenizer

    if not isinstance(texts, list):
        return calibration_and_more(folder, calibration, SEQUENCES)
    tokens = tokens_from_texts(texts, load_tokenizer(folder), calibration.samples, calibration.tokens)
    check_vocabulary(tokens, read_config(folder), str(folder))
    return tokens, None, {"dataset": "texts given"}


def _enough(
    model: "nn.Module",
    family: "Family",
    tokens: "Samples",
    metadata: dict[str, Any],
    calibration: CalibrationConfig,
    fit: MethodConfig,
) -> "tuple[Samples, dict[str, Any]]":
    """Return as many of the tokens as are enough for a fit, with the record of what was measured."""
    from replaceme.fitting.enough import Criterion, find_enough

    criterion = Criterion(calibration.tolerance, widest([fit]).regression)
    tokens, found = find_enough(model.base_model, family, tokens, calibration.batch_size, criterion)
    return tokens, {**metadata, "samples": len(tokens), "enough": found.record(times=False)}


def choose_and_fit(
    model: "nn.Module",
    passes: "Passes",
    record: ModelRecord,
    cut: CutConfig,
    fit: MethodConfig,
    merger: "Merger",
    stages: Stages,
) -> "tuple[Cut, list[Transform] | Found]":
    """Return the chosen cut and the transforms of its groups; the merger meanwhile copies what they cannot change.

    For another method it returns its result instead of transforms. `stages` takes the times.
    """
    from replaceme.fitting.fit_cut import fit_cut
    from replaceme.fitting.one_pass import can_foresee, choose_and_gather
    from replaceme.methods.fitting import fit_method
    from replaceme.transforms.collapse import as_chosen

    def begin(groups: Sequence[tuple[int, int]]) -> None:
        if fit.place.of_mlp:  # others change many shards
            merger.begin(groups)

    with tempfile.TemporaryDirectory(prefix="replaceme-rows-") as folder:
        evidence = None
        if can_foresee(cut, fit, passes.model):
            with stages("gather"):  # the distances too
                chosen, evidence = choose_and_gather(passes, record, cut, fit, Path(folder), begin)
        else:
            with stages("choose"):
                chosen = _choose(model, passes, record, cut)
        if fit.is_other:
            with stages("fit"):
                return chosen, fit_method(passes, fit, chosen, record)
        begin(chosen.groups)
        if evidence is None and not fit.sequential(len(chosen.groups) > 1):
            with stages("gather"):
                evidence = passes.evidence(fit, chosen.groups, Path(folder))
        gathered = None if evidence is None else evidence.__getitem__
        with stages("fit"):
            fitted = fit_cut(fit, chosen.groups, record, gathered, lambda: passes, passes.family)
        return chosen, as_chosen(chosen, fitted)


def _say_how_long(passes: "Passes", record: ModelRecord, cut: CutConfig, fit: MethodConfig, rest: float) -> None:
    """Log how long it will take about, `rest` being the seconds of writing and checking."""
    from replaceme.fitting.estimate import estimated

    found = estimated(passes, record, cut, fit)
    if found is not None:
        log.info(
            "about %s from here, by a trial on the first batch; half or twice that is possible", rounded(found + rest)
        )


def _predictions(
    passes: "Passes", cut: "Cut", found: "list[Transform] | Found", held_out: "Tokens | None"
) -> dict[str, Any] | None:
    """Return the predictions of the whole and the shortened model, and on which text; None without a head or maps, or
    where no token follows another.
    """
    from dataclasses import asdict

    from replaceme.activations.language_loss import are_counted
    from replaceme.fitting.held_out import compare_predictions

    if passes.headed is None or not isinstance(found, list):
        return None
    for tokens, text in ((held_out, "held out"), (passes.tokens, "of the calibration text")):
        if tokens is not None and are_counted(tokens).any():
            return {
                **asdict(compare_predictions(passes.headed, passes.family, cut.groups, found, tokens)),
                "text": text,
            }
    return None


def _choose(model: "nn.Module", passes: "Passes", record: ModelRecord, cut: CutConfig) -> "Cut":
    from replaceme.cuts.after_fit import candidates_of
    from replaceme.cuts.choose import choose
    from replaceme.cuts.distances import measure

    given, distances, candidates = (passes.family, passes.tokens, passes.batch_size), None, None
    if cut.needs_candidates:
        candidates = candidates_of(cut, record, model, *given)["candidates"]
    elif cut.start is None:
        distances = measure(passes.model, *given, cut.of_representations)
    return choose(cut, record, distances, candidates)
