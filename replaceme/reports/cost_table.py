"""Add up the cost of making each row of a table, from the cost files of the jobs that it depends on (`cost`).

A job that several rows need (tokens, distances, a Gram) counts in full in each of them, as each would need it alone,
and once in the total of the table. Checks, evaluations and speeds are no part of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.figures import COST_MEASURES
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json
from replaceme.provenance.job_cost import cost_file
from replaceme.reports.tables import KEYS

if TYPE_CHECKING:
    import pandas

    from replaceme.reports.render import Part

NAMES = KEYS[:4]
SUMMED = ("seconds", "cpu_seconds", "energy_kwh", "emissions_kg")
RELATIVE = ("seconds", "energy_kwh", "emissions_kg")


def collect(jobs: Mapping[str, Sequence[str]], results: str | Path) -> "pandas.DataFrame":
    """Return a row for each `model/calibration/cut/fit` of `jobs`, which lists the outputs of the jobs behind it.

    Columns: names, jobs, measured, COST_MEASURES (sums; of memory the largest), `seconds_shared` (in jobs that other
    rows need too), and `<measure>_relative`, a multiple of the cheapest row of the model. A row of which a job was not
    measured has no costs. `frame.attrs` has the `total` over all jobs, each once, and the machines, `measured_on`.
    """
    import pandas

    found = {out: _read(out, results) for outs in jobs.values() for out in outs}
    users: dict[str, int] = {}
    for outs in jobs.values():
        for out in outs:
            users[out] = users.get(out, 0) + 1
    records = []
    for row, outs in jobs.items():
        names = row.split("/")
        if len(names) != len(NAMES):
            raise ReplaceMeError(f"{row}: a row is named model/calibration/cut/fit")
        costs = [found[out] for out in outs if found[out] is not None]
        record = {**dict(zip(NAMES, names, strict=True)), "jobs": len(outs), "measured": len(costs)}
        if len(costs) == len(outs):
            record |= _together(costs)
            record["seconds_shared"] = sum(found[out]["seconds"] for out in outs if users[out] > 1)
        records.append(record)
    columns = [*NAMES, "jobs", "measured", *COST_MEASURES, "seconds_shared"]
    frame = pandas.DataFrame(records, columns=columns)
    for measure in RELATIVE:
        values = frame[measure].astype(float)
        frame[f"{measure}_relative"] = values / values.groupby(frame["model"]).transform("min")
    frame.attrs["total"] = _together([cost for cost in found.values() if cost is not None])
    frame.attrs["counts"] = (sum(cost is not None for cost in found.values()), len(found))
    frame.attrs["measured_on"] = _measured_on([cost for cost in found.values() if cost is not None])
    return frame


def parts(frame: "pandas.DataFrame") -> "list[Part]":
    """Return the table as it is shown."""
    from replaceme.reports.render import Column, part

    names = [Column(name, name) for name in NAMES if name == "fit" or frame[name].nunique() > 1]
    columns = [
        Column("jobs", "jobs", "count", meaning="jobs that made it"),
        Column("time s", "seconds", "significant", meaning="seconds in all these jobs"),
        Column("shared s", "seconds_shared", "significant", meaning="of these in jobs that other rows need too"),
        Column("CPU s", "cpu_seconds", "significant", meaning="processor time"),
        Column("memory MB", "memory_bytes", "significant", 1e-6, meaning="largest of a job, 10^6 bytes"),
        Column("GPU MB", "gpu_memory_bytes", "significant", 1e-6, meaning="largest of a job, 10^6 bytes"),
        Column("energy Wh", "energy_kwh", "significant", 1e3, meaning="watt hours, by CodeCarbon"),
        Column("emissions g", "emissions_kg", "significant", 1e3, meaning="grams of CO2 equivalent"),
        Column("× time", "seconds_relative", "significant", meaning="time, multiple of the cheapest row"),
        Column("× energy", "energy_kwh_relative", "significant", meaning="energy, multiple of the cheapest row"),
        Column("× emissions", "emissions_kg_relative", "significant", meaning="emissions, multiple of the least"),
    ]
    shown = [column for column in columns if frame[column.source].notna().any()]
    return [part("Cost", [*names, *shown], frame)]


def notes(frame: "pandas.DataFrame") -> list[str]:
    """Return notes on what the columns leave out."""
    measured, jobs = frame.attrs["counts"]
    lines = [
        "A job that several rows need (model, tokens, distances, a Gram) counts in full in each of them.",
        "Not counted: verify, evaluate, speed, tables, figures; starting Python.",
    ]
    total = frame.attrs["total"]
    if total["seconds"] is not None and measured:
        energy = "" if total["energy_kwh"] is None else f", {1e3 * total['energy_kwh']:.3g} Wh"
        emissions = "" if total["emissions_kg"] is None else f", {1e3 * total['emissions_kg']:.3g} g CO2e"
        lines.append(f"All rows together, each job once: {total['seconds']:.4g} s{energy}{emissions}.")
    if measured < jobs:
        lines.append(f"{jobs - measured} of {jobs} jobs ran while cost was not measured; their rows are empty.")
    return lines + frame.attrs["measured_on"]


def _read(out: str, results: str | Path) -> dict[str, Any] | None:
    path = cost_file(out, results)
    return read_json(path) if path.is_file() else None


def _together(costs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return sums, and the largest memory; None where one job lacks a measure (of GPU memory: where all do)."""
    found: dict[str, float | None] = {}
    for measure in SUMMED:
        values = [cost[measure] for cost in costs]
        found[measure] = None if None in values else sum(values)
    for measure in ("memory_bytes", "gpu_memory_bytes"):
        found[measure] = max((cost[measure] for cost in costs if cost[measure] is not None), default=None)
    return found


def _measured_on(costs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe each machine once, and the basis of energy and emissions."""
    from replaceme.provenance.environment import described

    machines = dict.fromkeys(f"Measured on {described(cost['hardware'])}; times are wall clock." for cost in costs)
    powered = [cost for cost in costs if "country" in cost]
    means = {f"Energy by CodeCarbon {cost['codecarbon']}, electricity of {cost['country']}." for cost in powered}
    return [*machines, *sorted(means)]
