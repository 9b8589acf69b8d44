"""Compare the energy of work on a GPU as `cost` reports it with the driver's own counter, read before and after.

The work is matrix products, for some seconds. The counter also sees the second or two that CodeCarbon takes to start
and to stop, so it must show somewhat more: exit code 1 where `cost` has less than SHARE of it, or more than it.

    python benchmarks/check_energy.py [--out benchmarks/results]       (needs a GPU, codecarbon and nvidia-smi)
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pynvml
import torch

from replaceme.core.files import read_json
from replaceme.provenance.environment import hardware, versions
from replaceme.provenance.job_cost import VARIABLE, cost_file, measured, setting

RESULTS = Path(__file__).parent / "results"
SECONDS = (5, 20, 40)
SHARE = 0.9
MILLIJOULES = 3.6e9  # in a kWh


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of energy-<gpu>.json")
    arguments = parser.parse_args()
    pynvml.nvmlInit()
    # by its name, as NVML counts devices that this process is not shown too
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[VARIABLE] = setting(country="FRA", interval=1)
        for seconds in SECONDS:
            out = Path(scratch) / str(seconds)
            before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            with measured("multiply", out):
                multiply(seconds)
            counted = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / MILLIJOULES
            cost = read_json(cost_file(out, None))
            gpu = cost["energy_kwh_by_part"]["gpu"]
            found.append({"seconds": cost["seconds"], "gpu_kwh": gpu, "counter_kwh": counted, "share": gpu / counted})
            print(json.dumps(found[-1]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    report = {"runs": found, "hardware": hardware(), "versions": versions("codecarbon")}
    (arguments.out / f"energy-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return int(not all(SHARE < one["share"] <= 1 for one in found))


def multiply(seconds: float) -> None:
    """Keep the GPU busy."""
    factor = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            factor @ factor
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
