"""For Python programs started by the tests: every attempt to reach a network is noted in a file and fails.

On request (REPLACEME_TEST_KILL=STEP:N,STEP:N) the process that runs a step is killed with SIGKILL at its N-th `fsync`,
which is in the middle of writing an output. Nothing waits for a disk: only a machine that loses its power would tell.
"""

import os
import signal
import socket
import sys

CONNECT = socket.socket.connect


def watch():
    """Note and refuse the network, sync nothing, and kill where that is asked for."""
    os.fsync = sync_nothing
    if "REPLACEME_TEST_ATTEMPTS" in os.environ:
        socket.socket.connect = _connect
        socket.socket.connect_ex = _connect
        socket.getaddrinfo = lambda host, *rest, **options: _note(f"look up {host}")
    kills = dict(kill.split(":") for kill in os.environ.get("REPLACEME_TEST_KILL", "").split(",") if kill)
    if not kills:
        return
    calls = iter(range(1, 1_000_000))

    def sync(descriptor):
        if next(calls) == int(kills.get(sys.argv[1] if sys.argv[1:] else "", 0)):
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync


def sync_nothing(descriptor):
    """Take the place of `os.fsync`, which takes milliseconds thousands of times."""


def _note(what):
    with open(os.environ["REPLACEME_TEST_ATTEMPTS"], "a") as file:  # noqa: PTH123
        file.write(f"{what} by {sys.argv}\n")
    raise OSError(f"no network here: {what}")


def _connect(self, address):
    if self.family == socket.AF_UNIX:
        return CONNECT(self, address)
    _note(f"connect to {address}")
