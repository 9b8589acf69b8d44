"""Have a step run by the workflow's step server (`step_server`), which has the large libraries imported already.

The step's arguments, folder, environment, limits and open files go to the server, which forks a child that runs it;
this process waits for the child and ends as it does, and if it is killed, so is the child. A child that crashes in a
library (CRASHES) has left nothing behind, and this process runs the step itself: of a hundred evaluations on GPUs two
crashed as forks within a second, and passed as they were. Only the standard library is imported here: without a server,
nothing but a look at the environment is spent.
"""

import array
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "REPLACEME_STEP_SERVER"  # of the environment: the path of the socket
LIMITS = ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_CPU")
LENGTH = 8  # bytes before a message, that say how long it is
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
PLAIN = "plain"  # beside it, the socket for PLAIN_STEPS
# what tries whether plain transformers loads an export, in a process that has not used transformers
PLAIN_STEPS = ("verify",)
# what needs none of the libraries for most models, and is the first of a run, while the server is importing them
ALONE = ("model",)


def hand_over(arguments: Sequence[str]) -> None:
    """Run a step as a child of the server, and end as it ends; return without a server, or where the child crashed."""
    where = os.environ.get(VARIABLE)
    if not where or not arguments or arguments[0] in ALONE:
        return
    if arguments[0] in PLAIN_STEPS:
        where = str(Path(where).with_name(PLAIN))
    request = {
        "arguments": list(arguments),
        "folder": str(Path.cwd()),
        "environment": {name: value for name, value in os.environ.items() if name != VARIABLE},
        "limits": {name: resource.getrlimit(getattr(resource, name))[0] for name in LIMITS},
    }
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(where)
        except OSError:  # it has ended
            return
        text = json.dumps(request).encode()
        files = array.array("i", [0, 1, 2]).tobytes()
        server.sendmsg([len(text).to_bytes(LENGTH)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(text)
        try:
            answer = server.recv(16)
        except KeyboardInterrupt:  # the child is killed as soon as this end of the socket is closed
            print("replaceme: interrupted; nothing half-written was left", file=sys.stderr)
            answer = b"130"
    if not answer:
        print("replaceme: error: the step server has died; run again", file=sys.stderr)
        answer = b"74"
    status = int(answer)
    if -status in CRASHES:
        name = signal.Signals(-status).name
        print(f"replaceme: {arguments[0]} crashed ({name}) as a fork; now as a process of its own", file=sys.stderr)
        return
    _end_as(status)


def _end_as(status: int) -> None:
    """End with an exit code, or by the signal that a negative one stands for."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
