"""Record the cost of a step in a small JSON file: time, memory, and for a given country energy and emissions.

On where the variable REPLACEME_COST is set. The workflow sets it from the section `cost` of config.yaml: were it an
option of the commands, switching it on would run every job again. Energy is CodeCarbon's: a GPU's own counter, the
processor's (RAPL) where it may be read, else its nominal power times the load of this process; of GPUs those that
CUDA_VISIBLE_DEVICES names, in a step that used them. Where the GPUs of such a step cannot be read no energy is given.
Emissions are that times the mean of the country's electricity. The network is not used.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError

VARIABLE = "REPLACEME_COST"
FOLDER = "cost"
SHOWING = {
    "check",
    "compare",
    "cost",
    "figure",
    "preflight",
    "provenance",
    "publish",
    "table",
}  # what they take is no cost
log = logging.getLogger(__name__)


def setting(results: str | Path | None = None, **cost: Any) -> str:
    """Return the value of REPLACEME_COST for a section `cost`; files go to `results`/cost, or else beside the
    outputs.
    """
    return json.dumps({**cost, **({} if results is None else {"results": str(results)})})


def cost_file(out: str | Path, results: str | Path | None) -> Path:
    """Return the path of the cost of the step that writes `out`: `<results>/cost/...` for an output inside
    `results`.
    """
    out = Path(out)
    if results is not None and out.absolute().is_relative_to(Path(results).absolute()):
        inside = out.absolute().relative_to(Path(results).absolute())
        return Path(results) / FOLDER / inside.with_name(f"{inside.name.removesuffix('.json')}.json")
    return out.with_name(f"{out.name}.cost.json")


@contextlib.contextmanager
def measured(step: str | None, out: str | Path | None) -> Iterator[None]:
    """Measure the block and write its cost, if it ends well; without REPLACEME_COST nothing is done or imported."""
    if VARIABLE not in os.environ or out is None or step in SHOWING:
        yield
        return
    options = _options()
    # its threads would be in what `speed` measures
    tracker = _started(options) if options["country"] and step != "speed" else None
    begin, cpu = time.perf_counter(), _cpu_seconds()
    try:
        yield
        record = {
            "step": step,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": _cpu_seconds() - cpu,
            **peak_memory(),
        }
    finally:
        found = _stopped(tracker)
    _keep(cost_file(out, options["results"]), {**record, **found})


def _keep(path: Path, record: dict[str, Any]) -> None:
    """Write a record and its hardware; a failure is a warning."""
    from replaceme.core.files import write_json
    from replaceme.provenance.environment import hardware

    try:
        write_json(path, {**record, "hardware": hardware()})
    except Exception as error:  # a measurement must not cost the result that it is of
        log.warning("no cost written: %s", error)


def check_country(country: str) -> None:
    """Raise ReplaceMeError where CodeCarbon is missing or knows no such country."""
    known = _countries()
    if country not in known:
        raise ReplaceMeError(
            f"cost.country: {country!r} is no country that CodeCarbon knows; use its ISO 3166 code of three letters"
        )


def _countries() -> dict[str, Any]:
    import importlib.util

    package = importlib.util.find_spec("codecarbon")
    if package is None:
        raise ReplaceMeError(
            "cost.country: energy needs CodeCarbon; `pip install codecarbon`, or drop the country to measure time alone"
        )
    folder = Path(package.submodule_search_locations[0])
    return json.loads((folder / "data/private_infra/global_energy_mix.json").read_text(encoding="utf-8"))


def _options() -> dict[str, Any]:
    from replaceme.config.cost import CostConfig
    from replaceme.core.validation import validated

    try:
        given = json.loads(os.environ[VARIABLE])
    except json.JSONDecodeError as error:
        raise ReplaceMeError(f"{VARIABLE}: not valid JSON ({error}); for instance {setting(country='FRA')}") from None
    results = given.pop("results", None)
    cost = validated(CostConfig, given, VARIABLE)
    if cost.country is not None:
        check_country(cost.country)
    return {**cost.model_dump(), "results": results}


def _started(options: dict[str, Any]) -> Any:
    """Start CodeCarbon on this process and its children; returns None, with a warning, where that fails."""
    import codecarbon
    from codecarbon.external.logger import logger

    logger.setLevel(logging.CRITICAL)  # before `log_level` counts, it reports on itself
    try:
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=options["country"],
            measure_power_secs=options["interval"],
            tracking_mode="process",
            allow_multiple_runs=True,
            save_to_file=False,
            save_to_api=False,
            log_level="critical",
        )
        tracker.start()
    except Exception as error:  # a measurement must not cost the result that it is of
        log.warning("no energy measured: CodeCarbon failed (%s)", error)
        return None
    return tracker


def _stopped(tracker: Any) -> dict[str, Any]:
    """Stop CodeCarbon and return energy by part, in kWh, and emissions, in kg; None where they were not measured."""
    found = None
    if tracker is not None:
        try:
            tracker.stop()
            found = tracker.final_emissions_data
        except Exception as error:
            log.warning("no energy measured: CodeCarbon failed (%s)", error)
    if found is None:
        return {"energy_kwh": None, "emissions_kg": None}
    energy = {"cpu": found.cpu_energy, "gpu": found.gpu_energy, "ram": found.ram_energy}
    if _cuda() is None:
        # CodeCarbon reads the devices of the machine, which here belong to other jobs or to nobody
        energy["gpu"] = 0.0
    elif not energy["gpu"]:
        # without them CodeCarbon sees no GPU, and would leave out the largest part without a word
        log.warning("no energy measured: CodeCarbon does not see the GPU that was used; it needs nvidia-smi and NVML")
        return {"energy_kwh": None, "emissions_kg": None}
    total = sum(energy.values())
    return {
        "energy_kwh": total,
        "energy_kwh_by_part": energy,
        "emissions_kg": found.emissions * total / found.energy_consumed if found.energy_consumed else 0.0,
        "country": found.country_iso_code,
        "codecarbon": found.codecarbon_version,
    }


def _cuda() -> Any:
    """Return torch.cuda if this process has used it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _cpu_seconds() -> float:
    """Return the processor seconds of this process and of its children that ended."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def peak_memory() -> dict[str, int | None]:
    """Return peaks in bytes: resident memory, of this process or of one child, and torch's memory on the GPUs."""
    import resource

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found: dict[str, int | None] = {"memory_bytes": peak * 1024, "gpu_memory_bytes": None}
    cuda = _cuda()
    if cuda is not None:
        found["gpu_memory_bytes"] = sum(cuda.max_memory_allocated(index) for index in range(cuda.device_count()))
    return found
