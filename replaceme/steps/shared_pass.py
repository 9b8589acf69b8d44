"""Run the forward pass of a step, and serve with it the planned jobs of the workflow that need the same one.

Jobs share a pass if they run the same model over the same shard of the same tokens in the same way (PASS). Under a lock
the first of them gathers for all others that can be done already, each into its own sums, so that all bits are those of
a pass of its own; the others find their results waiting (`planned`), and rename them. What others need is added only as
far as memory has room, and where it makes the pass fail the job does it again alone: an error of another job is for
that one to tell.
"""

import argparse
import fcntl
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from replaceme.activations.capture import collect
from replaceme.activations.rows import DISK_SHARE
from replaceme.core import files
from replaceme.core.disk import free_space
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import move, note_read, noting_apart, read_json, remove, write_json
from replaceme.core.memory import free_memory, is_full, release
from replaceme.core.progress import progress
from replaceme.steps.common import model_record
from replaceme.steps.forward import Forward, load_forward
from replaceme.steps.parser import Parser
from replaceme.workflow.planned import Plan, PlannedJob

if TYPE_CHECKING:
    from replaceme.activations.capture import Collector

log = logging.getLogger(__name__)
PASS = ("model", "tokens_file", "batch_size", "dtype", "streaming", "load_in_4bit", "gpus", "device", "threads")
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.5}  # of the free memory, for the sums of other jobs
WRITERS = 3  # results of other jobs that are hashed and written at once


@dataclass(frozen=True)
class Share:
    """Demand of a job on a pass: collectors, and the bytes that they will hold on the model's device and on the
    disk.
    """

    collectors: "Sequence[Collector]"
    bytes: int = 0
    disk: int = 0


# begins a job over a pass and, once the pass is through, writes its result to a path
Work = Callable[[argparse.Namespace, Forward, Path], AbstractContextManager[Share]]


def run_pass(step: str, args: argparse.Namespace, work: Work) -> None:
    """Do the work of a step by a forward pass, or fetch its result where another job's pass has made it."""
    plan = Plan.of_environment()
    own = plan.job(args.out) if plan else None
    if own is None or own.step != step or _parsed(own) != _given(args):
        _alone(step, args, load_forward(args, model_record(args)), work)
        return
    with _locked(plan.lock(_shared(_given(args)))):
        if _fetched(plan, own, args.out):
            log.info("%s: made by the pass of another job", step)
            return
        with noting_apart() as read:
            forward = load_forward(args, model_record(args))
        files.noted().read.update(read.read)
        if not _together(plan, own, args, forward, work, read):
            _alone(step, args, forward, work)


def _alone(step: str, args: argparse.Namespace, forward: Forward, work: Work) -> None:
    with work(args, forward, args.out) as share:
        _collect(step, args, forward, share.collectors)


def _collect(step: str, args: argparse.Namespace, forward: Forward, collectors: "Sequence[Collector]") -> None:
    from replaceme.activations.gather import shard_batches

    shard, shards = _shard(_given(args))
    batches = shard_batches(forward.tokens, forward.batch_size, shard, shards)
    collect(forward.model, forward.family, progress(batches, step, unit="batch"), collectors)


def _together(
    plan: Plan, own: PlannedJob, args: argparse.Namespace, forward: Forward, work: Work, read: files.Noted
) -> bool:
    """Do a job and others by one pass; return False if there are no others, or it failed because of them before this
    one was done.

    `read` are the files of the pass itself.
    """
    shared = _shared(_given(args))
    due = [one for one in plan.jobs if one != own and plan.is_due(one) and _shared(_parsed(one)) == shared]
    if not due:
        return False
    done = False
    try:
        with _Others() as others:
            with work(args, forward, args.out) as mine:
                collectors = _begin(others, plan, due, forward, read)
                _collect(own.step, args, forward, [*mine.collectors, *collectors])
            done = True
    except (ReplaceMeError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_full(error):
            raise
        how = "a result of another job is left to that" if done else "alone, not by one pass with other jobs"
        log.info("%s: %s: %s", own.step, how, str(error).split("\n")[0])
    else:
        return True
    release(next(forward.model.parameters()).device.type)  # here, as the error refers to what was made
    return done


class _Others:
    """The work of other jobs over a pass, each in its stack; at the end of the block several write at once."""

    def __init__(self) -> None:
        self.stacks: list[ExitStack] = []

    def __enter__(self) -> "_Others":
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            with ThreadPoolExecutor(WRITERS) as writers:
                written = [writers.submit(stack.close) for stack in self.stacks]
            for one in written:
                one.result()
        else:
            failed = ExitStack()
            for stack in self.stacks:
                failed.push(stack)
            failed.__exit__(*error)


def _begin(
    others: _Others, plan: Plan, due: list[PlannedJob], forward: Forward, read: files.Noted
) -> "list[Collector]":
    """Begin the jobs that memory has room for and return their collectors; `others` ends them."""
    device = next(forward.model.parameters()).device.type
    room = MEMORY_SHARE[device] * free_memory(device)
    disk = DISK_SHARE * free_space(plan.path.parent)
    found: list[Collector] = []
    count = 0
    for job in due:
        with suppress(ReplaceMeError), ExitStack() as this:  # what is wrong with it, its own process says
            share = this.enter_context(_waiting(plan, job, forward, read))
            if share.bytes <= room and share.disk <= disk:
                room, disk = room - share.bytes, disk - share.disk
                found += share.collectors
                count += 1
                others.stacks.append(this.pop_all())
            else:
                raise ReplaceMeError("no room")
    log.info("by the same pass: %d of %d other jobs", count, len(due))
    return found


@contextmanager
def _waiting(plan: Plan, job: PlannedJob, forward: Forward, read: files.Noted) -> Iterator[Share]:
    """Begin a job of another process; at the end its result waits for that, with a note of what was read for it."""
    args = argparse.Namespace(**_parsed(job))
    with ExitStack() as stack:
        with noting_apart() as noted:
            share = stack.enter_context(_module(job.step).work(args, forward, plan.waiting(job)))
        yield share
        with noting_apart(noted):
            stack.close()
            write_json(plan.note(job), [str(one) for one in (*read.read, *noted.read)])


def _fetched(plan: Plan, job: PlannedJob, out: Path) -> bool:
    """Put the waiting result of a job in its place and note what it was made from; return False if there is none."""
    path, note = plan.waiting(job), plan.note(job)
    if not (note.is_file() and path.exists()):
        return False
    with noting_apart():
        read = read_json(note)
    for one in read:
        note_read(one)
    for made in sorted(path.parent.glob(f"{path.name}*")):  # a table beside a matrix has the same name
        move(made, out.with_suffix(made.suffix) if made.suffix else out)
    remove(note.parent)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is free as soon as its process has ended."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parsed(job: PlannedJob) -> dict[str, Any]:
    """Return the arguments of a planned job by name."""
    parser = Parser(f"replaceme {job.step}", "")
    _module(job.step).arguments(parser)
    return vars(parser.parse_args(job.arguments))


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name != "run"}


def _shared(given: dict[str, Any]) -> tuple[Any, ...]:
    """Return what jobs must agree in that share a pass."""
    return (*(given.get(name) for name in PASS), *_shard(given))


def _shard(given: dict[str, Any]) -> tuple[int, int]:
    return given.get("shard", 0), given.get("shards", 1)


def _module(step: str) -> ModuleType:
    # by a computed name: what another job would do here is no part of this job's code
    return importlib.import_module(f"replaceme.steps.{step}")
