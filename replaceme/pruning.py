"""Shorten a model in one process, stage by stage: check what was asked for, load, choose, fit, write.

Two things are faster here than as jobs of their own, and give the same: a cut by distance and the evidence of its fit
share one forward pass where they can (`one_pass`), and unchanged tensors are copied to `out` meanwhile
(`write_checkpoint.Merger`).
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import widest
from replaceme.config.methods import MethodConfig
from replaceme.core.origin import Origin
from replaceme.core.stages import Stages, rounded
from replaceme.fitting.recommended import default_cut, default_fit
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    from torch import nn

    from replaceme.calibration.samples import Samples
    from replaceme.calibration.tokens import Tokens
    from replaceme.core.cut_record import Cut
    from replaceme.fitting.passes import Passes
    from replaceme.methods.found import Found
    from replaceme.models.family import Family
    from replaceme.surgery.write_checkpoint import Merger
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A shortening that was asked for and can be made: `texts` are None where the calibration names them."""

    record: ModelRecord
    config: dict[str, Any]
    cut: CutConfig
    fit: MethodConfig
    calibration: CalibrationConfig
    texts: list[str] | str | None


@dataclass(frozen=True)
class Loaded:
    """A model on its device with its passes over the calibration text, their origin, and text that no fit sees."""

    model: "nn.Module"
    passes: "Passes"
    origin: Origin
    held_out: "Tokens | None"
    device: str


@contextmanager
def opened(
    source: str, revision: str | None, dequantise: bool, out: str | Path, stages: Stages
) -> Iterator[ModelRecord]:
    """Yield the record of a model; of a quantised one that of its plain weights, which are gone after the block."""
    with ExitStack() as stack:
        if dequantise:
            from replaceme.surgery.plain_copy import plain_weights

            with stages("dequantise"):
                record = stack.enter_context(plain_weights(source, revision, out))
        else:
            record = resolve(source, revision)
        yield record


def checked_request(
    record: ModelRecord,
    out: str | Path,
    cut: CutConfig,
    fit: MethodConfig | None,
    text: "tuple[CalibrationConfig | None, list[str] | str | None, str | Path | None]",
    where: tuple[str, int],
) -> Asked:
    """Return what was asked for, after all checks that need no forward pass; `text`: calibration, texts, images;
    `where`: device and number of GPUs, by which a fit is chosen if none is given.
    """
    from replaceme.cuts.choose import possible_spans
    from replaceme.methods.registry import check_section, check_together
    from replaceme.models.model_config import check_calibration, check_cut, check_length, longest_sequence
    from replaceme.surgery.write_checkpoint import check_out

    source = record.source
    check_out(record.folder, out)
    if not cut.needs_costs:
        possible_spans(cut, record)
    config = read_config(record.folder)
    calibration = calibration_of(*text, longest_sequence(config, source))
    check_calibration(config, calibration, source)
    check_cut(config, cut, source)
    check_length(config, calibration.tokens, source)
    if fit is None:
        fit = default_fit(record, config, calibration, *where)
        cut = default_cut(cut) if fit.end_to_end else cut
    check_section(config, fit, source)
    check_together(cut, fit)
    return Asked(record, config, cut, fit, calibration, text[1])


def with_costs(asked: Asked, path: str | Path | None, where: tuple[str, int], stages: Stages) -> Asked:
    """Return what was asked for with what the model's parts cost in the unit of its cut: as a file says, or else as
    counted or measured on `where`, a device and a number of GPUs; unchanged where the unit is parameters.
    """
    record = asked.record.with_costs(path, asked.cut.of)
    if not asked.cut.needs_costs:
        return asked
    from replaceme.cuts.choose import possible_spans
    from replaceme.evaluation.parts import part_costs, usual_lengths
    from replaceme.models.loading import RunsOn
    from replaceme.models.model_config import pick_device, pick_dtype

    if path is None:
        with stages("measure parts"):
            device = pick_device(where[0])
            runs_on = RunsOn(device, pick_dtype("auto", device, asked.config), where[1])
            lengths = usual_lengths(asked.config, asked.cut.of, record.source)
            record = replace(record, costs=part_costs(record, asked.cut.of, lengths, runs_on))
    possible_spans(asked.cut, record)
    return replace(asked, record=record)


def load(asked: Asked, device: str, gpus: int, stages: Stages) -> Loaded:
    """Read text and model, with its head if something needs it or it says what predictions lose."""
    from replaceme.activations.open_model import load_model
    from replaceme.fitting.passes import Passes
    from replaceme.models.loading import Held
    from replaceme.models.model_config import family_of, pick_device, pick_dtype, stored_dtype

    record, calibration = asked.record, asked.calibration
    family = family_of(asked.config, record.source)
    with stages("load"):
        tokens, held_out, metadata = tokens_of(calibration.at_most, asked.texts, record.folder)
        device = pick_device(device)
        dtype = pick_dtype(calibration.dtype, device, asked.config)
        held = Held(gpus, calibration.load_in_4bit, calibration.streaming)
        # None: with its head, unless that is what makes it too large
        head = asked.cut.needs_loss or asked.fit.needs_loss or (None if family.predicts else False)
        model = load_model(record.folder, dtype, device, head, held)
    if calibration.automatic:
        with stages("enough"):
            tokens, metadata = _enough(model, family, tokens, metadata, calibration, asked.fit)
    sizes = (calibration.batch_size, stored_dtype(asked.config), calibration.shards)
    headed = None if head is False or hasattr(model, "streamed") else model
    passes = Passes(model.base_model, family, tokens, *sizes, headed=headed, folder=record.folder)
    origin = Origin(record.sha256, tokens.digest(), metadata, held.of_type(dtype), calibration.batch_size)
    return Loaded(model, passes, origin, held_out, device)


def shorten(
    asked: Asked, loaded: Loaded, out: str | Path, stages: Stages
) -> "tuple[Cut, list[Transform] | Found, dict[str, Any] | None, dict[str, Any]]":
    """Choose, fit and write; returns the cut, the maps, both models' predictions, and the provenance record."""
    from replaceme.methods.saving import finish_found
    from replaceme.surgery.fold import finish_pruned
    from replaceme.surgery.write_checkpoint import merging

    record, passes = asked.record, loaded.passes
    with merging(record.folder, out, record.files, loaded.device) as merger:
        chosen, found = choose_and_fit(loaded.model, passes, record, asked.cut, asked.fit, merger, stages)
        with stages("compare"):
            predictions = _predictions(passes, chosen, found, loaded.held_out)
        with stages("write"):
            finish = finish_found if asked.fit.is_other else finish_pruned
            provenance = finish(merger, record, replace(chosen, model_sha256=record.sha256), found, loaded.origin)
    return chosen, found, predictions, provenance


@contextmanager
def checking(asked: Asked) -> "Iterator[Callable[[Cut, list[Transform] | Found, str | Path, str], None] | None]":
    """Yield what checks the checkpoint of a cut with its maps in a folder, on a device, by a fresh process; None for an
    encoder of images.

    The process is started at once and imports what it takes meanwhile; it loads nothing until there is a folder.
    """
    from replaceme.models.model_config import is_of_images
    from replaceme.verification.reload import Fresh
    from replaceme.verification.verify import require_passed, verify

    if is_of_images(asked.config):
        yield None
        return
    with Fresh(asked.config["model_type"]) as fresh:
        yield lambda cut, found, out, device: require_passed(
            verify(asked.record, cut, found, out, fresh=fresh, device=device)
        )


def calibration_of(
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


def tokens_of(
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


def say_how_long(passes: "Passes", asked: Asked, rest: float) -> None:
    """Log how long it will take about, `rest` being the seconds of writing and checking."""
    from replaceme.fitting.estimate import estimated

    found = estimated(passes, asked.record, asked.cut, asked.fit)
    if found is not None:
        log.info(
            "about %s from here, by a trial on the first batch; half or twice that is possible", rounded(found + rest)
        )


def _predictions(
    passes: "Passes", cut: "Cut", found: "list[Transform] | Found", held_out: "Tokens | None"
) -> dict[str, Any] | None:
    """Return the predictions of the whole and the shortened model, or their states if they encode text, and on which
    text; None without a head or maps, or where no token follows another.
    """
    from dataclasses import asdict

    from replaceme.activations.language_loss import are_counted
    from replaceme.calibration.tokens import Tokens
    from replaceme.fitting.held_out import compare_predictions, compare_states

    if not isinstance(found, list):
        return None
    if not passes.family.predicts and isinstance(passes.tokens, Tokens):
        tokens, text = (passes.tokens, "of the calibration text") if held_out is None else (held_out, "held out")
        return {**asdict(compare_states(passes.model, passes.family, cut.groups, found, tokens)), "text": text}
    if passes.headed is None:
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
    from replaceme.cuts.distances import measure
    from replaceme.cuts.possible import choose_possible

    given, distances, candidates = (passes.family, passes.tokens, passes.batch_size), None, None
    if cut.needs_candidates:
        candidates = candidates_of(cut, record, model, *given)["candidates"]
    elif cut.start is None:
        distances = measure(passes.model, *given, cut.of_representations, cut.halves)
    return choose_possible(cut, record, distances, candidates)
