"""Package versions and hardware of a measurement, without anything that identifies a person or a host."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DRIVER = Path("/sys/module/nvidia/version")
PACKAGES = ("replaceme", "torch", "transformers", "lm_eval", "datasets", "numpy", "safetensors")


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages (and `more`) that results depend on, read from their
    metadata.
    """
    return {"python": platform.python_version(), **{package: _version(package) for package in (*PACKAGES, *more)}}


@cache
def _version(package: str) -> str:
    """Return the version of a package, for which its metadata is read once: that takes milliseconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hardware(ask_gpu: bool = False) -> dict[str, Any]:
    """Return CPU model, usable cores, memory in bytes, GPU names and driver.

    GPUs are looked for when torch is imported already, or when `ask_gpu` is true (which imports it).
    """
    import psutil

    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [],
        "gpu_driver": None,
    }
    if ask_gpu or "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            found["gpu_driver"] = _driver()
    return found


def described(hardware: Mapping[str, Any]) -> str:
    """Return hardware in words: `AMD EPYC, 2 cores, 25 GB, 1 x NVIDIA H100 (driver 570)`."""
    words = [hardware["cpu"], f"{hardware['cores']} cores", f"{hardware['memory_bytes'] / 1e9:.0f} GB"]
    gpus = hardware["gpus"]
    words += [f"{gpus.count(name)} x {name} (driver {hardware['gpu_driver']})" for name in dict.fromkeys(gpus)]
    return ", ".join(words)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@cache
def _driver() -> str | None:
    """Return the version of the GPUs' driver: the kernel's word, as nvidia-smi takes up to seconds on large hosts."""
    with suppress(OSError):
        return DRIVER.read_text(encoding="utf-8").strip()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer else None
