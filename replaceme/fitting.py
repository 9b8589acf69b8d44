"""From a fit section of the config to the fit itself."""

from typing import TYPE_CHECKING

from replaceme.config import FIT_OPTIONS, FitConfig

if TYPE_CHECKING:
    from replaceme.rows import Rows
    from replaceme.statistics import Statistics
    from replaceme.transforms import Shards, Transform


def fit_section(
    config: FitConfig,
    statistics: "Statistics | None",
    hidden_size: int,
    shards: "Shards | None" = None,
    rows: "Rows | None" = None,
    device: str = "cpu",
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
    if config.objective == "cosine":
        return fit_cosine(
            statistics,
            rows,
            config.iterations,
            ridge_relative=config.ridge_relative,
            towards=config.towards,
            device=device,
        )
    options = {name: getattr(config, name) for name in FIT_OPTIONS[config.transform]}
    return fit(statistics, config.transform, **options)
