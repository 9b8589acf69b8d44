"""Run a command on GPUs that no other job of this host uses: `python -m replaceme.workflow.gpu_lock N -- COMMAND...`.

Each device has a lock file, locked with `flock` by the process that uses it. The command replaces this process and
inherits the locks, so a device is free again when the command ends, however it ends, SIGKILL included. Jobs of one
user on one host share the lock folder (REPLACEME_GPU_LOCKS, else one in the temporary folder), also across workflows;
they must name devices alike (all by index or all by UUID). A device with several names, 0 and 00, takes as many jobs,
and jobs go where the fewest of their own step are, then the fewest of all: two fits do not share a device while
evaluations have another.

Under Slurm only the devices that it assigned count, and their names may mean others in the next job (cgroups number
them from 0), so each of its jobs and steps has locks of its own: a GPU job gets its devices at once, and a whole
workflow inside an allocation shares that allocation out. A pod of Kubernetes sees only its own devices and its own
temporary folder.
"""

import contextlib
import fcntl
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from replaceme.core.errors import ReplaceMeError

DRIVER = Path("/proc/driver/nvidia/gpus")
USAGE = "usage: python -m replaceme.workflow.gpu_lock N -- COMMAND..."
NONE_ASSIGNED = "NoDevFiles"  # what Slurm says in CUDA_VISIBLE_DEVICES for a job without GPUs
CHOOSING = ".choosing"  # beside the locks of devices: that of who looks for a free one
STEP_BYTES = 64  # at most, of the name of a step in a lock


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


def devices(names: list[str]) -> set[str]:
    """Return the different devices of some names: to CUDA 0 and 00 are one, and no job may have both."""
    return set(map(_device, names))


def _device(name: str) -> str:
    return str(int(name)) if name.isascii() and name.isdigit() else name


def in_slurm() -> bool:
    """Return whether this process belongs to a job of Slurm, which assigns the devices."""
    return "SLURM_JOB_ID" in os.environ


def acquire(count: int, folder: str | Path | None = None, step: str = "") -> list[str]:
    """Wait for `count` free devices and return their names; they stay locked until this process ends.

    `step`: what this job does, for a choice among devices with several names. All or nothing: a process never waits
    while it holds devices, so two jobs that want two each cannot block each other. The locks survive `exec`. Raises
    ReplaceMeError when fewer devices are visible at all.
    """
    folder = Path(folder or os.environ.get("REPLACEME_GPU_LOCKS") or _default_folder())
    folder.mkdir(parents=True, exist_ok=True)
    names = visible()
    if not 0 <= count <= len(devices(names)):
        raise ReplaceMeError(
            f"{count} GPU(s) asked for, {len(devices(names))} visible; ask for fewer or set CUDA_VISIBLE_DEVICES"
        )
    waiting = False
    while len(held := _lock_free(names, count, folder, step)) < count:
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


def _lock_free(names: list[str], count: int, folder: Path, step: str) -> dict[str, int]:
    """Lock `count` devices if so many are free now, and return their open file descriptors; {} otherwise."""
    with _choosing(folder):
        descriptors = {name: os.open(folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT, 0o600) for name in names}
        free = [name for name, descriptor in descriptors.items() if _lock(descriptor)]
        taken = {name: os.pread(descriptors[name], STEP_BYTES, 0) for name in names if name not in free}
        own = step.encode()[:STEP_BYTES]
        chosen = _emptiest(free, taken, own)[:count]
        held = chosen if len(chosen) == count else []
        for name, descriptor in descriptors.items():
            if name in held:
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, own, 0)
            else:
                os.close(descriptor)
        return {name: descriptors[name] for name in names if name in held}


@contextlib.contextmanager
def _choosing(folder: Path) -> Iterator[None]:
    """Be the only one that looks for free devices, for a moment: who looks locks all that are free."""
    descriptor = os.open(folder / CHOOSING, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file, and return whether no other process has."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _emptiest(free: list[str], taken: dict[str, bytes], step: bytes) -> list[str]:
    """Return a free name of each device, those of the fewest jobs of a step first, among these of the fewest jobs."""
    jobs = Counter(map(_device, taken))
    alike = Counter(_device(name) for name, other in taken.items() if other == step)
    names: dict[str, str] = {}
    for name in free:
        names.setdefault(_device(name), name)
    return [names[device] for device in sorted(names, key=lambda device: (alike[device], jobs[device]))]


def main(arguments: list[str]) -> None:
    """Lock the devices, name them in CUDA_VISIBLE_DEVICES and become the command; 0 devices hide all of them."""
    if len(arguments) < 3 or not arguments[0].isdigit() or arguments[1] != "--":
        raise SystemExit(USAGE)
    count, command = int(arguments[0]), arguments[2:]
    try:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(acquire(count, step=_step(command))) if count else ""
    except ReplaceMeError as error:
        raise SystemExit(str(error)) from None
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


def _step(command: list[str]) -> str:
    """Return what a command does: the step of `replaceme`, or the program."""
    return command[1] if Path(command[0]).name == "replaceme" and len(command) > 1 else command[0]


if __name__ == "__main__":
    main(sys.argv[1:])
