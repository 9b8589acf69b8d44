"""For Python programs started by the tests: every attempt to reach a network is noted in a file and fails.

On request (REPLACEME_TEST_KILL=STEP:N,STEP:N) the process that runs a step is killed with SIGKILL at its N-th `fsync`,
which is in the middle of writing an output.
"""

import os
import signal
import socket
import sys

CONNECT, SYNC = socket.socket.connect, os.fsync


def watch():
    """Note and refuse the network, and kill where that is asked for."""
    if "REPLACEME_TEST_ATTEMPTS" in os.environ:
        socket.socket.connect = _connect
        socket.socket.connect_ex = _connect
        socket.getaddrinfo = lambda host, *rest, **options: _note(f"look up {host}")
    kills = dict(kill.split(":") for kill in os.environ.get("REPLACEME_TEST_KILL", "").split(",") if kill)
    if not kills:
        return
    calls = iter(range(1, 1_000_000))

    def sync(descriptor):
        SYNC(descriptor)
        if next(calls) == int(kills.get(sys.argv[1] if sys.argv[1:] else "", 0)):
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync


def _note(what):
    with open(os.environ["REPLACEME_TEST_ATTEMPTS"], "a") as file:  # noqa: PTH123
        file.write(f"{what} by {sys.argv}\n")
    raise OSError(f"no network here: {what}")


def _connect(self, address):
    if self.family == socket.AF_UNIX:
        return CONNECT(self, address)
    _note(f"connect to {address}")
