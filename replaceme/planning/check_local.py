"""Find faults of a run before any job starts.

`check_inputs`, at every start, looks at local models and files against the tables that use them and takes no time;
`check_online` also asks the Hub, lm-eval and the machine, for `replaceme preflight`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replaceme.calibration.documents import check_source
from replaceme.config.cuts import CutConfig
from replaceme.config.schema import Config
from replaceme.config.sources import made_of, unmixed
from replaceme.config.tables import TableConfig
from replaceme.config.units import DECODED, PARAMETERS
from replaceme.core.errors import ReplaceMeError
from replaceme.cuts.choose import possible_spans, resolve_blocks
from replaceme.evaluation.labelled_images import labelled
from replaceme.exports.registry import lines_of_missing
from replaceme.methods.registry import check_section, check_together
from replaceme.models.checkpoints import local_folder, names_folder, read_config
from replaceme.models.model_config import (
    check_calibration,
    check_cut,
    check_length,
    family_of,
    has_text_tower,
    is_encoder,
    is_of_images,
)
from replaceme.models.other_formats import check_gguf, is_gguf
from replaceme.planning.check_measures import figure_problems, reference_problems
from replaceme.planning.outline import Outline, outline_at
from replaceme.planning.user_files import dates_ahead
from replaceme.provenance.job_cost import check_country


def check_inputs(config: Config, origin: str) -> None:
    """Raise one ReplaceMeError with a line for each local model, file or folder that a table cannot use.

    Of the weights only the headers are read, which finds missing and truncated shards.
    """
    lines = local_problems(config) or dates_ahead(config)
    if lines:
        raise ReplaceMeError("\n".join(f"{origin}: {line}" for line in lines))


def local_problems(config: Config) -> list[str]:
    """Return the lines of `check_inputs`, each beginning with the section that it is about."""
    tables = config.tables.values()
    lines: list[str] = []
    for name in sorted({model for table in tables for model in table.named("models")}):
        if names_folder(config.models[name].source):
            lines += _model_problems(config, name)
    for name in config.observed(tables):
        try:
            check_source(config.calibrations[name])
        except ReplaceMeError as error:
            lines.append(f"calibrations.{name}: {error}")
    lines += _healing_problems(config)
    for name in sorted({table.evaluation for table in tables if table.evaluation is not None}):
        include = config.evaluations[name].include
        if include is not None and not Path(include).is_dir():
            lines.append(f"evaluations.{name}: {include}: no such folder; `include` is a folder of task YAMLs")
        lines += _image_problems(config, name)
    for name, table in config.tables.items():
        lines += _divergence_problems(config, name, table)
        lines += _halves_problems(config, name, table)
        lines += [f"tables.{name}.exports: {line}" for line in lines_of_missing(table.exports)]
        lines += [f"tables.{name}: {problem}" for problem in reference_problems(config, name, table)]
    if config.cost is not None and config.cost.country is not None:
        try:
            check_country(config.cost.country)
        except ReplaceMeError as error:
            lines.append(str(error))
    for name, figure in config.figures.items():
        lines += [f"figures.{name}.{problem}" for problem in figure_problems(config, figure)]
    return lines


def _image_problems(config: Config, evaluation: str) -> list[str]:
    """Return lines for unusable local folders of labelled images, and for prompts unknown to clip-benchmark."""
    found = []
    for name, section in config.evaluations[evaluation].zeroshot.items():
        try:
            if names_folder(section.images):
                labelled(section)
        except ReplaceMeError as error:
            found.append(f"evaluations.{evaluation}.zeroshot.{name}: {error}")
    return found


def _healing_problems(config: Config) -> list[str]:
    """Return lines for healings of a table that lack text, have too little of it, or whose fits cannot be trained."""
    found = []
    for table_name, table in config.tables.items():
        for name in table.named("healings"):
            healing = config.healings[name]
            text = config.calibrations[healing.text]
            where = f"healings.{name} on calibrations.{healing.text}"
            if any(one.images is not None for one in unmixed(config.calibrations, healing.text)):
                found.append(f"{where}: images, but a healing trains on text; name a calibration of text")
            elif text.automatic:
                found.append(f"{where}: samples auto is of what fits take, not of training; give a number")
            elif text.samples <= healing.held_out:
                found.append(f"{where}: {text.samples} samples, {healing.held_out} of them held out; raise `samples`")
        healed = [row for row in table.pruned if row.healing is not None]
        layers = [f"fit {row.fit!r}" for row in healed if config.fits[row.fit].own_code]
        layers += [f"cut {row.cut!r}" for row in healed if config.cuts[row.cut].own_code]
        found += [
            f"tables.{table_name}: {one} makes layers of its own, which cannot be healed; drop one" for one in layers
        ]
    return list(dict.fromkeys(found))


def _divergence_problems(config: Config, name: str, table: TableConfig) -> list[str]:
    """Return a line where the text of a table's divergences is images, or what its models are made with."""
    text = config.divergence_text(table)
    if text is None:
        return []
    where = f"evaluations.{table.evaluation}.divergence"
    if any(one.images is not None for one in unmixed(config.calibrations, text)):
        return [f"{where}: {text!r} is images; name a calibration of text"]
    shared = [one for one in made_of(config.calibrations, [text]) if one in config.seen(table)]
    remedy = "name a calibration that no fit or healing uses"
    return [f"{where}: the models of tables.{name} are made with {one!r}; {remedy}" for one in shared[:1]]


def _halves_problems(config: Config, name: str, table: TableConfig) -> list[str]:
    """Return a line for each pair of a table whose cut may begin in the middle of a block, where its fit cannot."""
    found = []
    for cut, fit in dict.fromkeys((row.cut, row.fit) for row in table.pruned):
        try:
            check_together(config.cuts[cut], config.fits[fit])
        except ReplaceMeError as error:
            found.append(f"tables.{name}: cuts.{cut} with fits.{fit}: {error}")
    return found


def _model_problems(config: Config, name: str) -> list[str]:
    section = config.models[name]
    try:
        if section.revision is not None:
            raise ReplaceMeError(f"{section.source}: a local folder has no revision; drop it")
        if section.dequantise and is_gguf(local_folder(section.source)):
            check_gguf(local_folder(section.source))
            return []  # opening it takes half a minute: `preflight` does, and the step
        outline = outline_at(section.source, section.dequantise)
    except ReplaceMeError as error:
        return [f"models.{name}: {error}"]
    return uses_of(config, name, outline)


def _check_kinds(cut: CutConfig, outline: Outline) -> None:
    """Raise ReplaceMeError where a cut placed by hand makes another kind of a block that stays."""
    family = family_of(outline.config, outline.source)
    if cut.start is not None and family.kinds:
        from replaceme.probing.kinds import check_kinds  # and torch

        check_kinds(outline.config, family, [(cut.start, cut.start + resolve_blocks(cut, outline))], outline.source)


def uses_of(config: Config, name: str, outline: Outline) -> list[str]:
    """Return a line for each calibration, cut, fit or table that a model, judged by its outline, cannot take."""
    section = config.models[name]
    tables = [table for table in config.tables.values() if name in table.named("models")]
    found = _encoder_problems(config, name, outline.config)
    for cut_name in sorted({cut for table in tables for cut in table.named("cuts", name)}):
        try:
            check_cut(outline.config, config.cuts[cut_name], section.source)
            possible_spans(config.cuts[cut_name], outline)
            _check_kinds(config.cuts[cut_name], outline)
        except ReplaceMeError as error:
            found.append(f"cuts.{cut_name} on models.{name}: {error}")
    used = config.observed(tables, name)
    of_text = [one for one in used if config.calibrations[one].dataset or config.calibrations[one].prompts]
    lengths = {f"calibrations.{one}": config.calibrations[one].tokens for one in of_text}
    units = {config.cuts[cut].of for table in tables for cut in table.named("cuts", name)} - {PARAMETERS}
    timed = any(table.speed for table in tables)
    if timed or units:
        decodes = (timed and not is_encoder(outline.config)) or not units.isdisjoint(DECODED)
        lengths["speed"] = config.speed.prompt_tokens + decodes * config.speed.new_tokens
    for where, tokens in sorted(lengths.items()):
        try:
            check_length(outline.config, tokens, section.source)
        except ReplaceMeError as error:
            found.append(f"{where} on models.{name}: {error}")
    for fit_name in sorted({fit for table in tables for fit in table.named("fits", name)}):
        fit = config.fits[fit_name]
        try:
            check_section(outline.config, fit, section.source)
        except ReplaceMeError as error:
            found.append(f"fits.{fit_name} on models.{name}: {error}")
    return found


def _encoder_problems(config: Config, name: str, model: dict[str, Any]) -> list[str]:
    """Return lines for calibrations and evaluations of another kind of model, and for healings without a loss."""
    source, found = config.models[name].source, []
    tables = {key: table for key, table in config.tables.items() if name in table.named("models")}
    for calibration in sorted({one for table in tables.values() for one in table.named("calibrations", name)}):
        try:
            for section in unmixed(config.calibrations, calibration):
                check_calibration(model, section, source)
        except ReplaceMeError as error:
            found.append(f"calibrations.{calibration} on models.{name}: {error}")
    for key, table in tables.items():
        evaluation = config.evaluations.get(table.evaluation)
        problem = _unmeasured(model, bool(evaluation.zeroshot)) if evaluation else None
        if problem is not None:
            found.append(f"tables.{key}: {source}: {problem}")
        if is_encoder(model) and table.named("healings", name):
            found.append(f"tables.{key}: {source}: an encoder, which has no loss to heal by; drop healings")
    return found


def _unmeasured(model: dict[str, Any], zeroshot: bool) -> str | None:
    """Return why an evaluation does not measure a model, None where it does."""
    if not is_encoder(model):
        return "a language model, which zeroshot does not measure; name an evaluation with tasks" if zeroshot else None
    if not has_text_tower(model):
        what = "images alone" if is_of_images(model) else "text"
        return f"an encoder of {what}, which no evaluation measures; use `evaluation: null`"
    return None if zeroshot else "an encoder, which tasks do not measure; name an evaluation with zeroshot"


def sparse_calibrations(config: Config) -> list[str]:
    """Return warnings for calibrations with fewer tokens than a fit's rows are wide, whose Gram lacks full rank."""
    found = []
    for table in config.tables.values():
        for model in table.named("models"):
            source = config.models[model].source
            known = names_folder(source) and not is_gguf(local_folder(source))
            sizes = read_config(local_folder(source)) if known else {}
            for name in table.named("calibrations", model):
                sections = unmixed(config.calibrations, name)
                if any(section.images is not None for section in sections):
                    continue  # how many positions an image has is the model's affair; the `tokens` step says it
                tokens = config.calibrations[name].at_most.samples * max(section.tokens for section in sections)
                where = f"calibrations.{name} on models.{model}: at most {tokens} tokens"
                for what, width in sorted(_widths(config, table.named("fits", model), sizes).items()):
                    if tokens < width:
                        found.append(
                            f"{where} for {what} of {width}: the Gram has rank {tokens} at most; "
                            "raise `samples` or `tokens`"
                        )
    return sorted(set(found))


def _widths(config: Config, fits: Sequence[str], sizes: dict[str, Any]) -> dict[str, int]:
    """Return the widths of the rows that some fits regress on, by their names in config.json."""
    found = {}
    for fit in (config.fits[name] for name in fits):
        name = "intermediate_size" if fit.mlps else "hidden_size"
        found[f"{'an' if name[0] in 'aeiou' else 'a'} {name.replace('_', ' ')}"] = sizes.get(name, 0)
    return found
