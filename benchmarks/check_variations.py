"""Check that outcomes do not depend on the machine: `make test` and `make run` in clones under different conditions.

CONDITIONS has them: which instructions torch, oneDNN and MKL may use, language, time zone, user, names and file systems
of folders, number of cores. For each a clone is made below WORK and the commands are run in it; then the tables of the
runs are compared with those of the plain one, number by number. Exit code 1 where a command failed, or the tables of
runs differ in a text, or in a number by more than TOLERANCE (relative; times and memory aside).

Each clone installs itself, as README says; `--venv FOLDER` lends all of them the packages of an environment that is
there (no network needed). `--at-once N`: so many commands side by side, each on two cores of its own while there are.

    python benchmarks/check_variations.py WORK --out FILE [--venv FOLDER] [--at-once N] [--test ...] [--run ...]
"""

import argparse
import csv
import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "plain"
TOLERANCE = 1e-4
TIMINGS = ("tokens_per_s", "peak_memory", "seconds")
SCRIPTS = ("replaceme", "snakemake", "pytest", "ruff", "snakefmt")
NOBODY = "nobody"
# in a folder whose name has a space, pip writes the first line of a script like this
HEAD = "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"


@dataclass(frozen=True)
class Conditions:
    """Differences from the plain machine: variables (None: unset), folder, user, temporary folder, number of cores."""

    variables: dict[str, str | None] = field(default_factory=dict)
    folder: str = "clone"
    user: str | None = None
    temporary: str | None = None
    cores: int = 2


CONDITIONS = {
    PLAIN: Conditions({"MKL_CBWR": None}),
    "ATEN_CPU_CAPABILITY=default": Conditions({"ATEN_CPU_CAPABILITY": "default"}),
    "ATEN_CPU_CAPABILITY=avx2": Conditions({"ATEN_CPU_CAPABILITY": "avx2"}),
    "ONEDNN_MAX_CPU_ISA=AVX2": Conditions({"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "MKL_CBWR=COMPATIBLE": Conditions({"MKL_CBWR": "COMPATIBLE"}),
    "LANG=C": Conditions({"LANG": "C", "LC_ALL": None}),
    "LC_ALL=C.UTF-8": Conditions({"LC_ALL": "C.UTF-8"}),
    "another user": Conditions(user=NOBODY),
    "a folder with a space and an umlaut": Conditions(folder="Ein schöner Klon"),
    "TMPDIR on another file system": Conditions(temporary="/dev/shm"),
    "one core": Conditions(cores=1),
    "TZ=Asia/Tokyo": Conditions({"TZ": "Asia/Tokyo"}),
    "all that are not about arithmetic": Conditions(
        {"LANG": "C", "LC_ALL": None, "TZ": "Asia/Tokyo"}, "Noch ein schöner Klon", NOBODY, "/dev/shm", 1
    ),
}


def main() -> int:
    """Clone, run, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="an empty folder for the clones")
    parser.add_argument(
        "--test", nargs="*", choices=CONDITIONS, default=[*CONDITIONS], help="conditions of `make test`"
    )
    parser.add_argument("--run", nargs="*", choices=CONDITIONS, default=[*CONDITIONS], help="conditions of `make run`")
    parser.add_argument("--at-once", type=int, default=1, help="commands side by side")
    parser.add_argument("--venv", type=Path, help="an environment whose packages all clones use")
    parser.add_argument("--out", type=Path, required=True, help="the report (.json)")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    jobs = [("test", name) for name in arguments.test] + [("run", name) for name in arguments.run]
    report: dict[str, Any] = {"test": {}, "run": {}}
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(arguments.at_once):
        places.put(place)
    with ThreadPoolExecutor(arguments.at_once) as pool:
        perform = functools.partial(_perform, work, arguments.venv, places)
        futures = {pool.submit(perform, number, *job): job for number, job in enumerate(jobs)}
        for future, (target, name) in futures.items():
            report[target][name] = future.result()
            arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plain = report["run"].get(PLAIN, {}).get("folder")
    for found in report["run"].values():
        found["differs"] = _differences(Path(plain), Path(found["folder"])) if plain else None
    for one in (*report["test"].values(), *report["run"].values()):
        one.pop("folder", None)
    report["machine"] = _machine()
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [one for part in ("test", "run") for one in report[part].values() if one["code"] != 0]
    found = [one["differs"] for one in report["run"].values() if one["differs"]]
    apart = [one for one in found if one["largest"] > TOLERANCE or one["texts"]]
    return 1 if failed or apart else 0


def _perform(
    work: Path, venv: Path | None, places: SimpleQueue[int], number: int, target: str, name: str
) -> dict[str, Any]:
    """Run `make TARGET` in a clone under some conditions; returns exit code, seconds and pytest's summary."""
    conditions = CONDITIONS[name]
    home = work / f"{number:02d}-{target}"
    folder = home / conditions.folder
    _clone(folder)
    if venv is not None:
        _lend(venv.absolute(), folder)
    environment = _environment(conditions, home)
    place = places.get()
    cores = [(conditions.cores * place + k) % os.cpu_count() for k in range(conditions.cores)]
    command = ["taskset", "-c", ",".join(map(str, cores)), "make", target]
    if conditions.user is not None:
        shutil.chown(home, conditions.user)
        subprocess.run(["chown", "-R", conditions.user, home], check=True)
        command = ["runuser", "-u", conditions.user, "--", "env", f"HOME={home}", *command]  # which it had set anew
    begin = time.monotonic()
    with (home / "log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    seconds = round(time.monotonic() - begin)
    places.put(place)
    text = (home / "log").read_text(encoding="utf-8", errors="replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, flags=re.MULTILINE)
    counts = re.findall(r"^\d.* in [\d.]+s.*$|^=+ (\d.* in [\d.]+s.*) =+$", text, flags=re.MULTILINE)
    print(f"{name}: make {target}: {done.returncode} after {seconds} s", flush=True)
    return {
        "code": done.returncode,
        "seconds": seconds,
        **({"failed": failed, "counts": counts[-1:]} if target == "test" else {"folder": str(folder)}),
        **({"last": text[-3000:]} if done.returncode and not failed else {}),
    }


def _clone(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    if (ROOT / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True)
        return
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".snakemake", "__pycache__", ".carry"))


def _lend(venv: Path, folder: Path) -> None:
    """Make an environment of the clone's own that finds the packages of another one."""
    own, python = folder / ".venv", folder / ".venv/bin/python"
    base = Path(os.path.realpath(venv / "bin/python"))
    subprocess.run([base, "-m", "venv", "--without-pip", own], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # as a line of a .pth file, so that the .pth file of the package there is not read
    (own / f"lib/{version}/site-packages/lent.pth").write_text(f"{venv}/lib/{version}/site-packages\n")
    for name in SCRIPTS:
        source = (venv / "bin" / name).read_bytes()
        if source.startswith(b"#!"):
            code = source.partition(b"\n")[2]
            (own / "bin" / name).write_bytes(HEAD.format(python=python).encode() + code)
            (own / "bin" / name).chmod(0o755)
        else:
            shutil.copy2(venv / "bin" / name, own / "bin" / name)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([python, "-m", "pip", "install", *options, "--editable", folder], check=True)
    (own / ".ready").touch()


def _environment(conditions: Conditions, home: Path) -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if conditions.variables.get(key, "") is not None}
    given |= {key: value for key, value in conditions.variables.items() if value is not None}
    temporary = home / "tmp" if conditions.temporary is None else Path(conditions.temporary) / home.name
    temporary.mkdir(parents=True, exist_ok=True)
    if conditions.user is not None:
        shutil.chown(temporary, conditions.user)
        given |= {"USER": conditions.user, "XDG_CACHE_HOME": str(home / "cache")}
    return given | {"TMPDIR": str(temporary)}


def _differences(plain: Path, other: Path) -> dict[str, Any]:
    """Return the largest relative difference of two runs' tables, by column, and the texts that differ."""
    largest: dict[str, float] = {}
    texts = []
    for path in sorted((plain / "results/tables").glob("*.csv")):
        rows, others = _rows(path), _rows(other / "results/tables" / path.name)
        if len(rows) != len(others):
            texts.append(f"{path.name}: {len(rows)} / {len(others)} rows")
        for before, after in zip(rows, others, strict=False):
            for key in before:
                apart = _apart(before[key], after[key])
                if apart is None:
                    texts.append(f"{path.name}: {key}: {before[key]} / {after[key]}")
                elif apart:
                    largest[key] = max(largest.get(key, 0.0), apart)
    return {"largest": max(largest.values(), default=0.0), "columns": dict(sorted(largest.items())), "texts": texts}


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table without times and memory; none where there is no table."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if not any(part in key for part in TIMINGS)} for row in rows]


def _apart(one: str, two: str) -> float | None:
    """Return the relative difference of two numbers; None for texts that differ."""
    if one == two:
        return 0.0
    try:
        before, after = float(one), float(two)
    except ValueError:
        return None
    return abs(before - after) / max(abs(before), abs(after), math.ulp(0.0))


def _machine() -> dict[str, Any]:
    import torch

    return {
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": sorted(set(re.findall(r"\bavx\w*|\bamx\w*", Path("/proc/cpuinfo").read_text().split("\n\n")[0]))),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
