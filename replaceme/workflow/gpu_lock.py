"""Run a command on GPUs that no other job of this host uses: `python -m replaceme.workflow.gpu_lock N -- COMMAND...`.

Each device has a lock file, locked with `flock` by the process that uses it. The command replaces this process and
inherits the locks, so a device is free again when the command ends, however it ends, SIGKILL included. Jobs of one
user on one host share the lock folder (REPLACEME_GPU_LOCKS, else one in the temporary folder), also across workflows;
they must name devices alike (all by index or all by UUID).

Under Slurm only the devices that it assigned count, and their names may mean others in the next job (cgroups number
them from 0), so each of its jobs and steps has locks of its own: a GPU job gets its devices at once, and a whole
workflow inside an allocation shares that allocation out. A pod of Kubernetes sees only its own devices and its own
temporary folder.
"""

import fcntl
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from replaceme.core.errors import ReplaceMeError

DRIVER = Path("/proc/driver/nvidia/gpus")
USAGE = "usage: python -m replaceme.workflow.gpu_lock N -- COMMAND..."
NONE_ASSIGNED = "NoDevFiles"  # what Slurm says in CUDA_VISIBLE_DEVICES for a job without GPUs


def visible() -> list[str]:
    """Return the names of the devices that this process may use, from CUDA_VISIBLE_DEVICES or the driver; needs no
    CUDA.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        # as CUDA reads it: what follows a -1 is hidden; a device named twice is one device
        listed = (name.strip() for name in names.split(","))
        shown = itertools.takewhile(lambda name: name not in ("-1", NONE_ASSIGNED), listed)
        return [name for name in dict.fromkeys(shown) if name]
    if in_slurm():
        return []  # the driver may show what belongs to others
    if DRIVER.is_dir():
        return [str(index) for index, _ in enumerate(DRIVER.iterdir())]
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def in_slurm() -> bool:
    """Return whether this process belongs to a job of Slurm, which assigns the devices."""
    return "SLURM_JOB_ID" in os.environ


def acquire(count: int, folder: str | Path | None = None) -> list[str]:
    """Wait for `count` free devices and return their names; they stay locked until this process ends.

    All or nothing: a process never waits while it holds devices, so two jobs that want two each cannot block each
    other. The locks survive `exec`. Raises ReplaceMeError when fewer devices are visible at all.
    """
    folder = Path(folder or os.environ.get("REPLACEME_GPU_LOCKS") or _default_folder())
    folder.mkdir(parents=True, exist_ok=True)
    names = visible()
    if not 0 <= count <= len(names):
        raise ReplaceMeError(
            f"{count} GPU(s) asked for, {len(names)} visible; ask for fewer or set CUDA_VISIBLE_DEVICES"
        )
    waiting = False
    while len(held := _lock_free(names, count, folder)) < count:
        for descriptor in held.values():
            os.close(descriptor)
        if not waiting:
            print(f"waiting for {count} of {len(names)} GPU(s) in use by other jobs", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(random.uniform(0.1, 0.5))
    for descriptor in held.values():
        os.set_inheritable(descriptor, True)
    return list(held)


def _default_folder() -> Path:
    job = [os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if name in os.environ] if in_slurm() else []
    return Path(tempfile.gettempdir()) / "-".join(["replaceme-gpu", str(os.getuid()), *job])


def _lock_free(names: list[str], count: int, folder: Path) -> dict[str, int]:
    """Lock up to `count` devices that are free now; returns their open file descriptors."""
    held: dict[str, int] = {}
    for name in _in_turn(names):
        if len(held) == count:
            break
        descriptor = os.open(folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            held[name] = descriptor
    return held


def _in_turn(names: list[str]) -> list[str]:
    """Return the names in an order that spreads jobs over the devices, of which one may have several: 0, 1, 00, 01."""
    device = {name: str(int(name)) if name.isascii() and name.isdigit() else name for name in names}
    before: Counter[str] = Counter()
    turn = {}
    for name in names:
        turn[name] = before[device[name]]
        before[device[name]] += 1
    return sorted(names, key=turn.__getitem__)


def main(arguments: list[str]) -> None:
    """Lock the devices, name them in CUDA_VISIBLE_DEVICES and become the command; 0 devices hide all of them."""
    if len(arguments) < 3 or not arguments[0].isdigit() or arguments[1] != "--":
        raise SystemExit(USAGE)
    count, command = int(arguments[0]), arguments[2:]
    try:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(acquire(count)) if count else ""
    except ReplaceMeError as error:
        raise SystemExit(str(error)) from None
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
