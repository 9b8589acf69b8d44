"""What can be known to fail before any job starts: local models checked against the cuts and fits of their tables."""

from replaceme.checkpoints import is_local, open_checkpoint, read_config
from replaceme.config import Config
from replaceme.cuts import spans
from replaceme.data import check_source
from replaceme.errors import ReplaceMeError
from replaceme.models import family_of, require_foldable


def check_models(config: Config, origin: str, headers: bool = True) -> None:
    """Raise one ReplaceMeError with a line for each local model or file that a table cannot use.

    `headers` also reads the header of every safetensors shard, which finds missing and truncated ones.
    """
    lines: list[str] = []
    for name in sorted({model for table in config.tables.values() for model in table.models}):
        if is_local(config.models[name].source):
            lines += _problems(config, name, headers)
    for name in sorted({calibration for table in config.tables.values() for calibration in table.calibrations}):
        try:
            check_source(config.calibrations[name])
        except ReplaceMeError as error:
            lines.append(f"calibrations.{name}: {error}")
    if lines:
        raise ReplaceMeError("\n".join(f"{origin}: {line}" for line in lines))


def _problems(config: Config, name: str, headers: bool) -> list[str]:
    source = config.models[name].source
    try:
        model_config = read_config(source)
        family_of(model_config, source)
        if headers:
            open_checkpoint(source)
    except ReplaceMeError as error:
        return [f"models.{name}: {error}"]
    found = []
    tables = [table for table in config.tables.values() if name in table.models]
    for cut_name in sorted({cut for table in tables for cut in table.cuts}):
        cut = config.cuts[cut_name]
        if cut.blocks is None:
            continue
        try:
            possible = spans(model_config["num_hidden_layers"], cut.blocks)
            if cut.start is not None and (cut.start, cut.start + cut.blocks) not in possible:
                raise ReplaceMeError(f"cut: start {cut.start} must lie between 1 and {possible[-1][0]}")
        except ReplaceMeError as error:
            found.append(f"cuts.{cut_name} on models.{name}: {error}")
    for fit_name in sorted({fit for table in tables for fit in table.fits}):
        if config.fits[fit_name].transform == "identity":
            continue
        try:
            require_foldable(model_config, source)
        except ReplaceMeError as error:
            found.append(f"fits.{fit_name} on models.{name}: {error}")
    return found
