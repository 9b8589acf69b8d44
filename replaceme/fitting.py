"""From a fit section of the config to the fit itself."""

from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.config import FIT_OPTIONS, FitConfig

if TYPE_CHECKING:
    from replaceme.rows import Rows
    from replaceme.statistics import Statistics
    from replaceme.transforms import Shards, State, Transform


def fit_section(
    config: FitConfig,
    statistics: "Statistics | None",
    hidden_size: int,
    shards: "Shards | None" = None,
    rows: "Rows | None" = None,
    device: str = "cpu",
    state: "State | None" = None,
) -> "Transform":
    """The transform that a fit section describes.

    The identity needs no statistics, `ridge: auto` also the shards, a cosine fit also the rows, which it streams
    through `device`.
    """
    from replaceme.transforms import fit, fit_auto_ridge, fit_cosine, fit_identity

    if config.transform == "identity":
        return fit_identity(statistics, hidden_size)
    if config.automatic:
        return fit_auto_ridge(statistics, shards, config.towards)
    if config.solver != "auto":
        return _by_gradient(config, statistics, rows, device, state)
    if config.needs_rows:
        return fit_cosine(
            statistics,
            rows,
            config.iterations,
            ridge_relative=config.ridge_relative,
            towards=config.towards,
            device=device,
            exact=config.needs_state,
            state=state,
        )
    options = {name: getattr(config, name) for name in FIT_OPTIONS[config.transform]}
    return fit(statistics, config.transform, **options)


def _by_gradient(
    config: FitConfig, statistics: "Statistics", rows: "Rows", device: str, state: "State | None"
) -> "Transform":
    from replaceme.transforms import AdamOptions, Objective, fit_gradient

    options = config.iterations
    if config.solver == "adam":
        options = AdamOptions(
            config.learning_rate, config.batch_tokens, config.epochs, config.mask_ratio, config.order_seed
        )
    objective = Objective(config.objective, config.l1_alpha, config.l2_alpha)
    return fit_gradient(statistics, rows, objective, config.solver, options, device, state)


def fit_state(path: str | Path, config: FitConfig, rows: "Rows", device: str) -> "State":
    """The state of a fit over rows in `path`: good for the same rows, options, device and versions only."""
    import torch

    from replaceme import __version__
    from replaceme.transforms import State

    machine = {"replaceme": __version__, "torch": torch.__version__, "device": str(device)}
    machine["threads"] = torch.get_num_threads()
    stored = {"origin": rows.origin, "parts": rows.parts, "state": rows.state}
    return State(path, {"fit": config.model_dump(), "rows": stored, **machine})
