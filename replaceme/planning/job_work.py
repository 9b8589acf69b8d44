"""Compute how much each job of a config does: the tokens that it runs through its model, and what it holds beside
it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from replaceme.activations.head import LOGITS
from replaceme.activations.rows import row_bytes
from replaceme.config.healings import DISTILLATION
from replaceme.config.placement import Regression
from replaceme.config.schema import Config
from replaceme.config.sources import unmixed
from replaceme.config.units import TIMED
from replaceme.fitting.enough import spread_cuts
from replaceme.placements.placement import INPUT, REMOVED
from replaceme.planning.capacity import candidate_matrices
from replaceme.planning.job_resources import Work
from replaceme.planning.outline import Outline, vocabulary

Names = Mapping[str, str]  # of a job's wildcards
IMAGE = 256  # tokens as which an image counts
SIDE = 224  # pixels, of an image for an encoder whose config.json does not say
ITEMS = 10_000  # of a task without a limit
REQUESTS = 4  # of an item, one for each choice
REQUEST_TOKENS = 150
SHOT_TOKENS = 100
DECODED = 20  # tokens in one pass that take as long as one that is generated alone
KINDS = 4  # of blocks, at most, of most models
CHECKED = 512  # tokens of a check of a merged model


def work_of(rule: str, config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of a job, by its rule and its wildcards; of rules without a model, none."""
    kind = WORK.get(rule)
    return Work() if kind is None else kind(config, names, outline)


def rule_of_fit(config: Config, names: Names) -> str:
    """Return the entry of `needs.TABLE` for a fit: from statistics, or by passes of its own."""
    fit, cut = config.fits[names["fit"]], config.cuts[names["cut"]]
    if fit.end_to_end:
        return "transform_end_to_end"
    return "transform_by_passes" if fit.is_other or fit.sequential(cut.several) else "transform"


def entry_of(rule: str, config: Config, names: Names) -> str:
    """Return the entry of `needs.TABLE` for a job: its rule, unless that has several."""
    if rule == "transform":
        return rule_of_fit(config, names)
    if rule == "recycle" and _regression(config, names).recycle_from == REMOVED:
        return "recycle_removed"
    if rule == "parts" and names["unit"] not in TIMED:
        return "parts_counted"
    if rule == "heal" and config.healings[names["healing"]].objective == DISTILLATION:
        return "heal_distilled"
    return rule


def length(config: Config, calibration: str) -> int:
    """Return the tokens of the longest sequence of a calibration."""
    parts = unmixed(config.calibrations, calibration)
    return max(IMAGE if one.images is not None else one.tokens for one in parts)


def tokens_of(config: Config, calibration: str) -> int:
    """Return the tokens of a calibration, at most."""
    return config.calibrations[calibration].at_most.samples * length(config, calibration)


def pixels_of(config: Config, calibration: str, outline: Outline) -> int:
    """Return the number of values of all images of a calibration, as an encoder takes them; none of text."""
    if all(one.images is None for one in unmixed(config.calibrations, calibration)):
        return 0
    sizes = outline.config.get("vision_config") or outline.config
    image = sizes.get("num_channels", 3) * sizes.get("image_size", SIDE) ** 2
    return config.calibrations[calibration].at_most.samples * image


def _text(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of preparing a text: images are held one by one and stacked; a mix is joined and shuffled beside
    its parts.
    """
    name = names["calibration"]
    parts = config.calibrations[name].mix or ()
    pixels = 2 * pixels_of(config, name, outline) + sum(pixels_of(config, part, outline) for part in parts)
    return Work(text=tokens_of(config, name), pixels=pixels)


def _generated(config: Config, names: Names, outline: Outline) -> Work:
    section = config.calibrations[names["calibration"]]
    decoded = section.samples * section.generation.new_tokens * DECODED
    return Work(decoded, section.batch_size * section.tokens, dtype=section.dtype)


def _passes(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of forward passes over the whole calibration, or one of its shards."""
    name = names["calibration"]
    section = config.calibrations[name]
    share = int(names["shards"]) if "shard" in names else 1
    sums = _sums(config, names, outline) if "kind" in names else Work()
    at_once = section.batch_size * length(config, name)
    tokens, pixels = tokens_of(config, name) / share, pixels_of(config, name, outline)
    return replace(sums, tokens=tokens, positions=at_once, pixels=pixels, dtype=section.dtype)


def stored_rows(config: Config, names: Names, outline: Outline) -> int:
    """Return the bytes of the rows that a job stores, at most."""
    wanted, tokens = names["fit_tokens"], tokens_of(config, names["calibration"])
    count = tokens if wanted == "all" else min(tokens, int(wanted))
    sums = _sums(config, names, outline)
    return sums.groups * count * row_bytes((sums.width, outline.hidden_size), bool(names["exact"]))


def _enough(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of a pass over all samples that are read, and of sums for several cuts."""
    width = _width(config.criterion(names["model"], names["calibration"]).regression, outline)
    return replace(_passes(config, names, outline), width=width, groups=len(spread_cuts(outline.num_blocks)))


def _candidates(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of passes over a part of the text; for loss and kl, one more for every candidate."""
    name = names["calibration"]
    section = config.calibrations[name]
    cut = config.cuts[names["cut"]]
    most = section.at_most.samples
    samples = min(cut.samples or most, most)
    again = outline.num_blocks * (1 + cut.halves) if cut.needs_loss else 1
    at_once = section.batch_size * length(config, name)
    tokens, pixels = samples * length(config, name) * again, pixels_of(config, name, outline)
    return Work(tokens, at_once, squares=candidate_matrices(cut, outline), pixels=pixels, dtype=section.dtype)


def _sums(config: Config, names: Names, outline: Outline) -> Work:
    return Work(width=_width(_regression(config, names), outline), groups=config.cuts[names["cut"]].groups)


def _recycled(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of the sums that neurons are chosen from, which are wider than those of the fit, and of passes
    over the text for neurons of removed blocks.
    """
    regression = _regression(config, names)
    if regression.recycle_from == INPUT:
        return replace(_sums(config, names, outline), width=_width(regression.before, outline))
    width = round((1 + regression.recycle) * _width(regression, outline))
    return replace(_passes(config, names, outline), width=width)


def _regression(config: Config, names: Names) -> Regression:
    """Return the regression of a kind of sums."""
    return next(one for one in _regressions(config) if one.kind == names["kind"])


def _regressions(config: Config) -> Iterator[Regression]:
    """Return the regressions of all fits, and those before some of them."""
    for fit in config.fits.values():
        if not fit.is_other:
            yield fit.regression
            if fit.regression.before is not None:
                yield fit.regression.before


def _fit(config: Config, names: Names, outline: Outline) -> Work:
    fit = config.fits[names["fit"]]
    from_sums = rule_of_fit(config, names) == "transform" and not fit.needs_rows
    work = Work() if from_sums else _passes(config, names, outline)
    groups = config.cuts[names["cut"]].groups
    waiting = fit.copies(groups) * tokens_of(config, names["calibration"]) * outline.hidden_size
    if fit.is_other:
        width = round(fit.mlps * _inner(outline)) or outline.hidden_size
    else:
        width = _width(fit.regression, outline)
    if fit.end_to_end:
        at_once = fit.kl_sequences * length(config, names["calibration"])
        work = replace(work, tokens=work.tokens + at_once * fit.kl_steps, positions=max(work.positions, at_once))
    return replace(work, width=width, groups=groups, waiting=waiting)


def _evaluation(config: Config, names: Names, outline: Outline) -> Work:
    section = config.evaluations[names["evaluation"]]
    items = section.limit or ITEMS
    requests = [REQUEST_TOKENS + SHOT_TOKENS * (task.fewshot or 0) for task in section.tasks.values()]
    images = [IMAGE for _ in section.zeroshot]
    tokens = items * (REQUESTS * sum(requests) + sum(images))
    lengths = requests + images
    return Work(tokens, section.at_once * max(lengths), dtype=section.dtype)


def _divergence(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of passes over a text; both models' logits of a batch are held, in some intermediate forms."""
    section = config.evaluations[names["evaluation"]]
    batch = max(length(config, section.divergence), LOGITS // max(1, vocabulary(outline.config)))
    return Work(tokens_of(config, section.divergence), 6 * batch, dtype=section.dtype)


def _speed(config: Config, names: Names, outline: Outline) -> Work:
    speed = config.speed
    once = speed.batch_size * (speed.prompt_tokens + speed.new_tokens * DECODED)
    return Work(once * (speed.repeats + speed.warmup), speed.batch_size * speed.prompt_tokens)


def _parts(config: Config, names: Names, outline: Outline) -> Work:
    """Return the work of such a measurement of the whole model, and without each of three parts of some kinds."""
    once = _speed(config, names, outline)
    return replace(once, tokens=once.tokens * 4 * KINDS)


def _healing(config: Config, names: Names, outline: Outline) -> Work:
    section = config.healings[names["healing"]]
    at_once = section.batch_size * length(config, section.text)
    trained = outline.parameters if section.train == "full" else 0.05 * outline.parameters
    return Work(at_once * section.accumulation * section.steps, at_once, trained=trained, dtype=section.dtype)


def _checked(config: Config, names: Names, outline: Outline) -> Work:
    return Work(CHECKED, CHECKED)


def _width(regression: Regression, outline: Outline) -> int:
    """Return the width of what is regressed on."""
    return regression.place.width(outline.hidden_size, _inner(outline))


def _inner(outline: Outline) -> int:
    """Return the width of an MLP."""
    return int(outline.config.get("intermediate_size") or 4 * outline.hidden_size)


WORK: dict[str, Callable[[Config, Names, Outline], Work]] = {
    "tokens": _text,
    "mix": _text,
    "generate": _generated,
    "enough": _enough,
    "distances": _passes,
    "parts": _parts,
    "candidates": _candidates,
    "gram": _passes,
    "recycle": _recycled,
    "sum": _sums,
    "rows": _passes,
    "transform": _fit,
    "verify": _checked,
    "export": _checked,
    "evaluate": _evaluation,
    "divergence": _divergence,
    "speed": _speed,
    "heal": _healing,
}
