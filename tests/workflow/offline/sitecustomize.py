"""For processes started by the tests: every attempt to reach a network is noted in a file and fails.

On request (REPLACEME_TEST_KILL=STEP:N,STEP:N) the process that runs a step is killed with SIGKILL at its N-th `fsync`,
which is in the middle of writing an output.
"""

import os
import signal
import socket
import sys


def _note(what):
    with open(os.environ["REPLACEME_TEST_ATTEMPTS"], "a") as file:  # noqa: PTH123
        file.write(f"{what} by {sys.argv}\n")
    raise OSError(f"no network here: {what}")


def _connect(self, address):
    if self.family == socket.AF_UNIX:
        return _real_connect(self, address)
    _note(f"connect to {address}")


_real_connect = socket.socket.connect
if "REPLACEME_TEST_ATTEMPTS" in os.environ:
    socket.socket.connect = _connect
    socket.socket.connect_ex = _connect
    socket.getaddrinfo = lambda host, *rest, **options: _note(f"look up {host}")

_kills = dict(kill.split(":") for kill in os.environ.get("REPLACEME_TEST_KILL", "").split(",") if kill)
_calls = iter(range(1, 1_000_000))


def _fsync(descriptor):
    _real_fsync(descriptor)
    if next(_calls) == int(_kills.get(sys.argv[1] if sys.argv[1:] else "", 0)):
        os.kill(os.getpid(), signal.SIGKILL)


_real_fsync = os.fsync
if _kills:
    os.fsync = _fsync
