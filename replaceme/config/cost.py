"""The section `cost`: the cost of jobs, measured while they run."""

from pydantic import Field

from replaceme.config.base import Strict


class CostConfig(Strict):
    """Measurements of the run itself: time and memory of every step, and with a country energy and emissions."""

    country: str | None = Field(
        None,
        pattern="^[A-Z]{3}$",
        description="ISO 3166 code of three letters, such as FRA, whose electricity CodeCarbon reckons with (offline); "
        "null: neither energy nor emissions.",
    )
    interval: float = Field(5.0, gt=0, description="Time between two readings of the power, in seconds.")
