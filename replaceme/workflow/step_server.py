"""Run steps of the workflow as forks of one process that has imported the large libraries.

Most of a short step is the import of torch, transformers, datasets and lm-eval. `StepServer` is that of a run of
Snakemake on this machine; steps find it by the variable of `step_client`, and run as they do without where it is gone.
What a child has of the server are imported modules alone: arguments, folder, environment, limits and files are those of
the process that asked, and CUDA is first used in the child. Libraries are imported while no step waits. The server ends
with the Snakemake that started it, or once that is gone and its children are through.

Checks, which try whether plain transformers loads an export, are forked from a server of their own: itself a fork of
the first, from before it imported more than torch and transformers.
"""

import array
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import logging
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from replaceme.core.fresh import mark
from replaceme.core.memory import use_large_pages
from replaceme.core.offline import set_environment
from replaceme.workflow.step_client import LENGTH, PLAIN, VARIABLE

log = logging.getLogger(__name__)
CLI = "replaceme.cli"
# what a check finds imported
PLAIN_LIBRARIES = (
    "torch", "safetensors.torch", "transformers", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama", "transformers.generation",
)  # fmt: skip
# what the other steps find imported too, in the order in which those of a workflow need it
PRELOADED = (
    CLI, "replaceme.config.schema", "datasets", "scipy.optimize", "lm_eval.evaluator", "lm_eval.tasks",
    "lm_eval.models.huggingface", "pandas", "matplotlib.pyplot",
)  # fmt: skip
PR_SET_PDEATHSIG = 1  # of Linux
LONGEST_FOLDER = 70  # bytes: the path of a socket has 107 at most
WATCHED = 5  # seconds between looks for the process that started the server
ENDING = 20  # seconds that the server may take to end; an import goes on until it returns


def _short_folder() -> str:
    """Return the folder for temporary files, or /tmp where the path of a socket in it would be too long."""
    folder = tempfile.gettempdir()
    return folder if len(folder.encode()) <= LONGEST_FOLDER else "/tmp"


class StepServer:
    """The server of a run of Snakemake: `start`, then `path` is its socket, `stop`.

    None is started where the variable of `step_client` is set already, to nothing or to another server's path.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server; it imports while the first jobs are on their way."""
        if VARIABLE in os.environ:
            return
        folder = Path(tempfile.mkdtemp(prefix="replaceme-steps-", dir=_short_folder()))
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as plain:
            try:
                listener.bind(str(folder / "socket"))
                plain.bind(str(folder / PLAIN))
            except OSError as error:  # every step does without it
                log.warning("no process that steps are forked from: %s: %s", folder, error.strerror or error)
                shutil.rmtree(folder)
                return
            self.path = str(folder / "socket")
            listener.listen(256)
            plain.listen(256)
            files = [listener.fileno(), plain.fileno()]
            arguments = [*map(str, files), self.path, str(os.getpid())]
            # a session of its own: an interrupt from the keyboard is for Snakemake, which ends what it has started
            self._process = subprocess.Popen(
                [sys.executable, "-m", "replaceme.workflow.step_server", *arguments],
                pass_fds=files,
                cwd="/",
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        """End the server, if there is one."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(ENDING)
            except subprocess.TimeoutExpired:
                self._process.kill()  # and with it those that it has forked
                self._process.wait()
            shutil.rmtree(Path(self.path).parent, ignore_errors=True)  # it had no time to, if it had just begun


def serve(listener: socket.socket, plain: socket.socket, path: str, parent: int) -> None:
    """Import libraries step by step and run what is asked for, until the process that started this one is gone; checks
    by way of `plain`.
    """
    server, own = _Server(listener), os.getpid()

    def clean() -> None:
        server.end_plain()
        shutil.rmtree(Path(path).parent, ignore_errors=True)

    def end(*_: object) -> None:
        """End at once: Python swallows an exception of a handler that runs during a fork."""
        if os.getpid() == own:
            clean()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    # those are of libraries, which hold nothing that a child waits for
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    set_environment(online=True)  # libraries read it when they are imported; a child may turn the network off later
    use_large_pages()
    try:
        server.run(parent, server.imports(plain))
    finally:
        clean()


class _Server:
    """The children by the descriptors that show their ends (pidfd), each with the socket of who waits for it; `plain`:
    transformers is as it was imported.
    """

    def __init__(self, listener: socket.socket, plain: bool = False) -> None:
        self.plain = plain
        self.other: int | None = None  # the server that checks are forked from
        self.children: dict[int, tuple[int, socket.socket]] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, lambda: self.accept(listener))

    def run(self, parent: int, work: Iterator[Callable[[], object]]) -> None:
        """Answer who asks, and do a piece of work whenever nobody does."""
        wait: float = 0
        while os.getppid() == parent or self.children:
            ready = self.selector.select(timeout=wait)
            for key, _ in ready:
                key.data()
            if not ready and wait == 0:
                piece = next(work, None)
                if piece is None:
                    gc.collect()
                    gc.freeze()  # so that children share these pages
                    wait = WATCHED
                else:
                    with contextlib.suppress(Exception):  # a step that needs it will say why
                        piece()

    def imports(self, plain: socket.socket) -> Iterator[Callable[[], object]]:
        """Yield what to do while nobody asks: imports, and between them the fork of the server of checks."""
        yield from (partial(importlib.import_module, name) for name in PLAIN_LIBRARIES)
        yield partial(self.fork_plain, plain)
        yield from (partial(importlib.import_module, name) for name in PRELOADED)

    def fork_plain(self, listener: socket.socket) -> None:
        """Fork the server that checks are forked from."""
        server, kept = os.getpid(), listener.fileno()
        self.other = os.fork()
        if self.other != 0:
            listener.close()
            return
        try:
            _die_with(server)
            os.closerange(3, kept)  # sockets of who asks the other one
            os.closerange(kept + 1, 4096)
            _Server(listener, plain=True).run(server, iter(()))
        finally:
            os._exit(0)

    def end_plain(self) -> None:
        """End the server that checks are forked from."""
        if self.other:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended
                os.kill(self.other, signal.SIGKILL)
                os.waitpid(self.other, 0)

    def accept(self, listener: socket.socket) -> None:
        """Fork a child for a step that asks."""
        asking, _ = listener.accept()
        received = _received(asking)
        if received is None:
            asking.close()
            return
        request, files = received
        server, number = os.getpid(), os.fork()
        if number == 0:
            try:
                _die_with(server)
                _become(request, files, self.plain)
            finally:
                os._exit(70)
        for file in files:
            os.close(file)
        ended = os.pidfd_open(number)
        self.children[ended] = number, asking
        self.selector.register(ended, selectors.EVENT_READ, lambda: self.report(ended))
        # who asks says nothing more: this end becomes readable when the other is closed
        self.selector.register(asking, selectors.EVENT_READ, lambda: self.kill(ended))

    def kill(self, ended: int) -> None:
        """Kill a child whose asker is gone, unless both have ended at once."""
        if ended in self.children:
            number, asking = self.children[ended]
            self.selector.unregister(asking)
            os.kill(number, signal.SIGKILL)

    def report(self, ended: int) -> None:
        """Tell who asked how the child ended."""
        number, asking = self.children.pop(ended)
        self.selector.unregister(ended)
        os.close(ended)
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        if asking in self.selector.get_map():
            self.selector.unregister(asking)
            with contextlib.suppress(OSError):
                asking.sendall(str(status).encode())
        asking.close()


def _received(asking: socket.socket) -> tuple[dict, list[int]] | None:
    """Read a request and its open files; None where who asks has died on the way."""
    head, rights, *_ = asking.recvmsg(LENGTH, socket.CMSG_SPACE(12))
    length, text = int.from_bytes(head), b""
    while len(text) < length:
        more = asking.recv(length - len(text))
        if not more:
            return None
        text += more
    return (json.loads(text), array.array("i", rights[0][2][:12]).tolist()) if rights else None


def _die_with(parent: int) -> None:
    """Have this process killed when its parent dies, or end it if that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(70)


def _become(request: dict, files: list[int], plain: bool) -> None:
    """Run a step in this process, a child of the server, as if it had been started by who asks, and end it."""
    import atexit

    atexit._clear()  # what the libraries have yet to do at the end of the server
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.closerange(3, 4096)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if plain:
        mark()
    for name, soft in request["limits"].items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable(2)  # a crash says where
    sys.argv = ["replaceme", *request["arguments"]]
    _set_threads()
    os._exit(_status(importlib.import_module(CLI).main))


def _set_threads() -> None:
    """Have torch take the threads that the environment of a step names, which it read when it was imported."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdigit() and int(threads) > 0:
        sys.modules["torch"].set_num_threads(int(threads))


def _status(main: Callable[[], int]) -> int:
    """Run the command line and return its exit code, as a program would end with it."""
    import threading

    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return status & 255


if __name__ == "__main__":
    serve(*(socket.socket(fileno=int(one)) for one in sys.argv[1:3]), sys.argv[3], int(sys.argv[4]))
