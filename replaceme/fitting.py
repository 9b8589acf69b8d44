"""From a fit section of the config to the fit itself."""

from typing import TYPE_CHECKING

from replaceme.config import FitConfig

if TYPE_CHECKING:
    from replaceme.statistics import Statistics
    from replaceme.transforms import Transform


def fit_section(config: FitConfig, statistics: "Statistics | None", hidden_size: int) -> "Transform":
    """The transform that a fit section describes; the identity needs no statistics."""
    from replaceme.transforms import fit, fit_identity

    if config.transform == "identity":
        return fit_identity(statistics, hidden_size)
    return fit(statistics, config.objective, ridge=config.ridge, ridge_relative=config.ridge_relative)
