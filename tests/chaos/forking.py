"""A process that has imported what the steps import, and forks a child for each step that it is asked to run.

The modules to begin with are its arguments; what else a child imports is imported for the next. So a step costs what it
does and not three seconds of imports. It reads requests from stdin and answers on stdout, both a line of JSON each.
A request: {"argv", "folder", "environment", "moment": K, "after": seconds, "share", "file_size"}, the first two always.
The child is killed by SIGKILL at its K-th moment, or after so many seconds. Moments are just before and after each
change that it makes to the file system: a file opened for writing, renamed or removed, a folder made, a sync. At the
moment before a sync only `share` of the file is left, which is what a kill in the midst of writing it leaves.
The answer: {"status": exit code, negative for a signal, "seconds", "moments": their number, "error": stderr}.
"""

import importlib
import itertools
import json
import os
import resource
import signal
import sys
import threading
import time

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
WRITING = os.O_WRONLY | os.O_RDWR


class Moments:
    """Counts the moments of a child below a folder, and kills it at one of them."""

    def __init__(self, folder, deadly, share):
        self.folder, self.deadly, self.share = str(folder), deadly, share
        self._numbers, self.count, self._sync = itertools.count(1), 0, os.fsync
        os.fsync = self.sync
        sys.addaudithook(self.audit)

    def audit(self, event, arguments):
        if event in CHANGES or (event == "open" and _writes(arguments)):
            place = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
            if os.path.abspath(place).startswith(self.folder):  # noqa: PTH100
                self.pass_one()

    def sync(self, descriptor):
        self.pass_one(descriptor)
        self._sync(descriptor)
        self.pass_one()

    def pass_one(self, descriptor=None):
        self.count = next(self._numbers)
        if self.count == self.deadly:
            path = None if descriptor is None else os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
            if path is not None and os.path.isfile(path):  # noqa: PTH113
                os.truncate(path, int(os.path.getsize(path) * self.share))  # noqa: PTH202
            os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments):
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & WRITING)


def child(request, errors, report):
    """Run a step in this process and end it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)  # a pipe: no limit on the size of files holds for it
    os.chdir(request["folder"])
    if request.get("file_size") is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], HARD))
    os.environ.update(request.get("environment") or {})
    known = set(sys.modules)
    moments = Moments(request["folder"], request.get("moment"), request.get("share", 0.5))
    from replaceme.cli import main

    try:
        status = main(request["argv"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
    sys.stderr.flush()
    os.write(report, json.dumps({"moments": moments.count, "modules": sorted(set(sys.modules) - known)}).encode())
    os._exit(status)


def run(request):
    """Fork a child for a request, kill it if that is asked, and wait for its end."""
    (reading, writing), (heard, said) = os.pipe(), os.pipe()
    start = time.monotonic()
    number = os.fork()
    if number == 0:
        try:
            child(request, said, writing)
        finally:
            os._exit(71)  # whatever happens: this process must not go on as its parent
    os.close(writing)
    os.close(said)
    listener = Listener(heard)
    killer = None
    if request.get("after") is not None:
        killer = threading.Timer(request["after"], os.kill, (number, signal.SIGKILL))
        killer.start()
    with os.fdopen(reading) as stream:
        report = json.loads(stream.read() or "{}")
    # not waited for before the timer is stopped, so that its number cannot be another's by then
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - start
    if killer is not None:
        killer.cancel()
        killer.join()
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    listener.join()
    for name in report.get("modules", []):  # the next child has them from the start
        load(name)
    return {
        "status": status,
        "seconds": seconds,
        "moments": report.get("moments"),
        "error": listener.text,
    }


class Listener(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, descriptor):
        super().__init__()
        self.descriptor, self.text = descriptor, ""
        self.start()

    def run(self):
        with os.fdopen(self.descriptor, errors="replace") as stream:
            self.text = stream.read()


def load(name):
    """Import a module, if it can be imported by itself."""
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"not imported ahead: {name} ({error})", file=sys.stderr)


def serve():
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # the libraries read these when they are imported, which here is before a step says so
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    for name in sys.argv[1:]:
        load(name)
    from replaceme.transforms.resume import State

    State.__init__.__defaults__ = (None, None, 0.0)  # saved at each step, so that there are states to be killed with
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)
    os._exit(0)  # to take all modules apart would take seconds


if __name__ == "__main__":
    serve()
