"""Costs of steps: their files, off by default, and the sums over the jobs of rows."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from replaceme.cli import main
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import write_json
from replaceme.provenance.job_cost import VARIABLE, check_country, cost_file, measured, setting
from replaceme.reports.cost_table import collect, notes, parts

HARDWARE = {"cpu": "a CPU", "cores": 2, "memory_bytes": 4e9, "gpus": ["a GPU", "a GPU"], "gpu_driver": "1.2"}


def test_where_costs_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(cost_file("results/m.v1/c/cut.json", "results")) == "results/cost/m.v1/c/cut.json"
    assert str(cost_file(tmp_path / "results/m/c/n1/ls", "results")) == "results/cost/m/c/n1/ls.json"
    assert str(cost_file("elsewhere/out.json", "results")) == "elsewhere/out.json.cost.json"
    assert str(cost_file("out", None)) == "out.cost.json"


def test_off_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with measured("fit", tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
    code = "import sys, replaceme.cli; sys.exit(bool({'codecarbon', 'torch', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_steps_that_only_show_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, setting(tmp_path, country="FRA"))
    with measured("table", tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_step_writes_what_it_took(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, setting(tmp_path, country=None))
    with measured("fit", tmp_path / "m/out"):
        kept = sum(k * k for k in range(300_000))
    cost = json.loads((tmp_path / "cost/m/out.json").read_text())
    assert kept and cost["step"] == "fit" and 0 < cost["seconds"] < 60 and cost["cpu_seconds"] >= 0
    assert cost["memory_bytes"] > 1e7 and cost["energy_kwh"] is None and cost["hardware"]["cores"] >= 1


def test_a_step_that_fails_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, setting(tmp_path))
    with pytest.raises(ZeroDivisionError), measured("fit", tmp_path / "out"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_energy_and_emissions_of_a_country(tmp_path, monkeypatch):
    """CodeCarbon, without a network (its sockets are refused); more emissions where electricity has more."""
    pytest.importorskip("codecarbon")

    def refused(*_):
        raise AssertionError("tried the network")

    monkeypatch.setattr("socket.socket.connect", refused)
    per_kwh = {}
    for country in ("FRA", "POL"):
        monkeypatch.setenv(VARIABLE, setting(tmp_path, country=country))
        with measured("fit", tmp_path / country):
            sum(k * k for k in range(1_000_000))
        cost = json.loads((tmp_path / f"cost/{country}.json").read_text())
        assert cost["energy_kwh"] == pytest.approx(sum(cost["energy_kwh_by_part"].values())) and cost["energy_kwh"] > 0
        assert cost["country"] == country
        per_kwh[country] = cost["emissions_kg"] / cost["energy_kwh"]
    assert per_kwh["POL"] > 2 * per_kwh["FRA"]


class Tracker:
    """The report of CodeCarbon on a machine whose GPUs are at work."""

    def __init__(self, **_):
        energies = {"cpu_energy": 1.0, "gpu_energy": 6.0, "ram_energy": 1.0, "energy_consumed": 8.0}
        named = {"country_iso_code": "FRA", "codecarbon_version": "3"}
        self.final_emissions_data = SimpleNamespace(**energies, emissions=4.0, **named)

    def start(self):
        pass

    stop = start


@pytest.mark.parametrize(("used", "energy", "emissions"), [(False, 2.0, 1.0), (True, 8.0, 4.0)])
def test_gpus_count_in_the_steps_that_use_them(tmp_path, monkeypatch, used, energy, emissions):
    monkeypatch.setattr(pytest.importorskip("codecarbon"), "OfflineEmissionsTracker", Tracker)
    monkeypatch.setenv(VARIABLE, setting(tmp_path, country="FRA"))
    for name, answer in (("is_available", True), ("is_initialized", used), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 10 + index)
    monkeypatch.setattr("replaceme.provenance.environment.hardware", lambda: HARDWARE)
    with measured("gram", tmp_path / "out"):
        pass
    cost = json.loads((tmp_path / "cost/out.json").read_text())
    assert (cost["energy_kwh"], cost["emissions_kg"]) == (energy, emissions)
    assert cost["gpu_memory_bytes"] == (21 if used else None)


NVML = """
import os, time
from types import SimpleNamespace

class NVMLError(Exception):
    pass

class NVMLError_NotSupported(NVMLError):
    pass

NVML_TEMPERATURE_GPU, BEGIN = 0, time.monotonic()
c_nvmlMemory_t = lambda *sizes: SimpleNamespace(total=sizes[0], free=sizes[1], used=sizes[2])
nvmlInit = lambda: None
nvmlDeviceGetCount = lambda: 3
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetName = lambda index: "a GPU"
nvmlDeviceGetUUID = lambda index: f"GPU-{index}"
nvmlDeviceGetMemoryInfo = lambda index: c_nvmlMemory_t(80, 40, 40)
nvmlDeviceGetTemperature = lambda index, which: 40
nvmlDeviceGetEnforcedPowerLimit = lambda index: 700_000
nvmlDeviceGetUtilizationRates = lambda index: SimpleNamespace(gpu=100)
nvmlDeviceGetComputeMode = lambda index: 0
nvmlDeviceGetComputeRunningProcesses = nvmlDeviceGetGraphicsRunningProcesses = lambda index: []

def watts(index):
    return (1, 20_000, 10**8)[index]

def nvmlDeviceGetPowerUsage(index):  # mW
    return 1000 * watts(index)

def nvmlDeviceGetTotalEnergyConsumption(index):  # mJ
    if "WITHOUT_COUNTER" in os.environ:
        raise NVMLError_NotSupported
    return int(1000 * watts(index) * (time.monotonic() - BEGIN))
"""
ON_A_GPU = """
import json, os, sys, time
from types import SimpleNamespace
from replaceme.provenance.job_cost import measured
import codecarbon, cpuinfo, pandas, requests  # what takes longest to import, for all of them

answers = {"is_available": True, "is_initialized": True, "device_count": 1}
cuda = SimpleNamespace(**{name: lambda answer=answer: answer for name, answer in answers.items()})
cuda.max_memory_allocated = lambda index: 123
cuda.get_device_name = lambda index: "a GPU"
sys.modules["torch"] = SimpleNamespace(cuda=cuda)
for name, more in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        os.environ.update(more)
        os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT), 2)
        with measured("gram", name):
            time.sleep(0.3)
        sys.stderr.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.fixture(scope="module")
def on_a_gpu(tmp_path_factory):
    """The costs of steps, and what each said, that use GPU 1 of three, of 20 kW, with a stand-in for the driver.

    By the counter of the driver, without one, and without `nvidia-smi`, by which CodeCarbon looks for GPUs.
    """
    pytest.importorskip("codecarbon")
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "lib").mkdir()
    (folder / "lib/pynvml.py").write_text(NVML)
    (folder / "bin").mkdir()
    (folder / "bin/nvidia-smi").write_text("#!/bin/sh\n")
    (folder / "bin/nvidia-smi").chmod(0o755)
    cases = {"counter": {}, "power": {"WITHOUT_COUNTER": "1"}, "unseen": {"PATH": str(folder / "none")}}
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "1", VARIABLE: setting(country="FRA", interval=1)}
    given |= {"PATH": str(folder / "bin"), "PYTHONPATH": str(folder / "lib")}
    command = [sys.executable, "-c", ON_A_GPU, json.dumps(cases)]
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    costs = {name: json.loads((folder / f"{name}.cost.json").read_text()) for name in cases}
    return {name: (cost, (folder / f"{name}.txt").read_text()) for name, cost in costs.items()}


@pytest.mark.parametrize("case", ["counter", "power"])
def test_the_energy_of_the_gpu_that_was_used(on_a_gpu, case):
    """Through CodeCarbon itself: by the counter of the driver, or where it has none by the power it reports."""
    cost, _ = on_a_gpu[case]
    joules = 3.6e6 * cost["energy_kwh_by_part"]["gpu"]
    assert 5_000 < joules < 1e7  # 0.3 s at least of this one, and nothing of the others
    assert cost["energy_kwh"] == pytest.approx(sum(cost["energy_kwh_by_part"].values()))
    assert cost["gpu_memory_bytes"] == 123


def test_a_gpu_that_cannot_be_read_leaves_no_energy(on_a_gpu):
    cost, said = on_a_gpu["unseen"]
    assert cost["energy_kwh"] is None and cost["emissions_kg"] is None and cost["gpu_memory_bytes"] == 123
    assert "does not see the GPU that was used" in said


def test_a_measurement_that_fails_costs_no_result(tmp_path, monkeypatch, caplog):
    codecarbon = pytest.importorskip("codecarbon")
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", lambda **_: 1 / 0)
    monkeypatch.setenv(VARIABLE, setting(tmp_path, country="FRA"))
    with measured("fit", tmp_path / "out"):
        pass
    assert json.loads((tmp_path / "cost/out.json").read_text())["energy_kwh"] is None
    assert "no energy measured: CodeCarbon failed" in caplog.text


def test_a_cost_that_cannot_be_written_costs_no_result(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, setting(tmp_path))
    (tmp_path / "cost").write_text("a file where the folder should be")
    with measured("fit", tmp_path / "out"):
        (tmp_path / "out").write_text("a result")
    assert (tmp_path / "out").exists() and "no cost written" in caplog.text and "cannot write" in caplog.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not valid JSON"),
        ('{"country": "fr"}', "country"),
        ('{"interval": 0}', "interval"),
        ('{"land": 1}', "land"),
    ],
)
def test_a_setting_that_is_none(tmp_path, monkeypatch, value, message):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ReplaceMeError, match=f"REPLACEME_COST.*{message}"), measured("fit", tmp_path / "out"):
        pass


def test_an_unknown_country():
    pytest.importorskip("codecarbon")
    with pytest.raises(ReplaceMeError, match="'XYZ' is no country"):
        check_country("XYZ")


@pytest.fixture
def results(tmp_path):
    """Five jobs, the first two of which both rows need; `row/uidl` needs three, `row/ls` four."""
    costs = {"model": (1, 0.1), "tokens": (2, 0.2), "uidl": (1, 0.1), "gram": (10, 1.0), "ls": (3, 0.6)}
    for name, (seconds, energy) in costs.items():
        path = cost_file(tmp_path / name, tmp_path)
        path.parent.mkdir(exist_ok=True)
        record = {"seconds": seconds, "cpu_seconds": 2 * seconds, "energy_kwh": energy, "emissions_kg": energy / 2}
        record |= {"memory_bytes": 100 * seconds, "gpu_memory_bytes": 7 if name == "gram" else None}
        path.write_text(json.dumps({**record, "country": "FRA", "codecarbon": "3", "hardware": HARDWARE}))
    jobs = {"m/c/n/uidl": ("model", "tokens", "uidl"), "m/c/n/ls": ("model", "tokens", "gram", "ls")}
    return tmp_path, {row: [str(tmp_path / name) for name in names] for row, names in jobs.items()}


def test_rows_count_shared_jobs_in_full_and_the_total_once(results):
    frame = collect(results[1], results[0])
    assert frame["seconds"].tolist() == [4, 16] and frame["seconds_shared"].tolist() == [3, 3]
    assert frame["energy_kwh"].tolist() == pytest.approx([0.4, 1.9])
    assert frame["seconds_relative"].tolist() == [1, 4]
    assert frame["energy_kwh_relative"].tolist() == pytest.approx([1, 4.75])
    assert frame["memory_bytes"].tolist() == [200, 1000] and frame["gpu_memory_bytes"].tolist()[1] == 7
    assert frame.attrs["total"]["seconds"] == 17 and frame.attrs["total"]["energy_kwh"] == pytest.approx(2.0)
    assert "All rows together, each job once: 17 s, 2e+03 Wh, 1e+03 g CO2e." in notes(frame)
    assert "Measured on a CPU, 2 cores, 4 GB, 2 x a GPU (driver 1.2); times are wall clock." in notes(frame)
    assert "Energy by CodeCarbon 3, electricity of FRA." in notes(frame)


def test_a_row_with_a_job_that_was_not_measured_has_no_costs(results):
    folder, jobs = results
    cost_file(folder / "gram", folder).unlink()
    frame = collect(jobs, folder)
    assert frame["seconds"].isna().tolist() == [False, True] and frame["measured"].tolist() == [3, 3]
    assert frame["seconds_relative"].tolist()[0] == 1
    assert "1 of 5 jobs ran while cost was not measured; their rows are empty." in notes(frame)
    assert parts(frame)[0].cells[1][-1] == ""


def test_the_command_writes_all_formats(results, tmp_path, capsys):
    folder, jobs = results
    listed, out = tmp_path / "jobs.json", tmp_path / "t.v1.cost"
    write_json(listed, jobs)
    argv = ["cost", str(folder), "--jobs", str(listed), "--caption", "Cost.", "--out", str(out)]
    assert main(argv) == 0
    texts = {kind: (tmp_path / f"t.v1.cost.{kind}").read_text() for kind in ("csv", "md", "html", "tex")}
    assert "| uidl |" in texts["md"] and "counts in full in each of them" in texts["html"]
    write_json(listed, {"m/ls": []})
    assert main(argv) == 1
    assert "a row is named model/calibration/cut/fit" in capsys.readouterr().err
