"""Start Python programs as forks of a process that has imported the large libraries, in place of importing them again.

Most of what the tests of the workflow took was imports: 3 to 6 seconds of torch, transformers, datasets, lm-eval and
Snakemake for each step that then works for some tenths of a second. `sitecustomize`, beside this file, asks `hand_over`
whether a program that begins is one of WARMED. If so its arguments, environment, limits and open files go through a
socket to `serve`, which forks a child that runs the program as Python would, and the program that began waits for the
child and ends as it does. If it is killed, so is the child. The server has replaceme of a copy of the code: steps, and
programs that have this copy on PYTHONPATH, find its modules imported too; all others import them anew. A program that
is asked for does little before it is handed over: hundreds are. The workers of pytest-xdist are such programs.

Not for tests of what a process imports or of how fresh it is: without REPLACEME_TEST_WARM everything starts cold.
"""

import _socket as socket  # which `socket` takes long to wrap
import array
import marshal
import os
import resource
import signal
import sys
from pathlib import Path

VARIABLE = "REPLACEME_TEST_WARM"  # the path of the socket
WARMED = ("replaceme", "snakemake", "reload_worker.py", "forking.py", "check_repeats.py")
MARK = "# warm\n"  # of a program given by `-c` that is to be warmed
WORKER = ["-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]  # of pytest-xdist, as execnet starts it
PRELOADED = (
    "torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.generation", "safetensors.torch", "datasets", "lm_eval.evaluator", "lm_eval.tasks",
    "lm_eval.models.huggingface", "pandas", "pandas.io.formats.csvs", "scipy.optimize", "scipy.io", "threadpoolctl",
    "matplotlib.pyplot", "matplotlib.backends.backend_svg", "pydantic", "jinja2", "peft", "accelerate", "snakemake.cli",
    "snakemake.api", "snakemake.workflow", "snakemake.storage", "snakemake.report", "smart_open", "graphlib",
)  # fmt: skip
CODE = ""  # of the server: a folder that holds the package
LIMITS = ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_AS")
LENGTH = 8  # bytes before a message, that say how long it is


def hand_over() -> None:
    """Let this process be run as a child of the server, if it is one of WARMED and a server is there; else return."""
    where, program = os.environ.get(VARIABLE), _program(sys.orig_argv[1:])
    if not where or program is None or os.environ.get("PYTHONHASHSEED", "0") != "0":  # the server has a seed of its own
        return
    request = {
        "program": program,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "limits": {name: resource.getrlimit(getattr(resource, name))[0] for name in LIMITS},
    }
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(where)
    except OSError:
        server.close()
        return
    text = marshal.dumps(request)
    files = array.array("i", [0, 1, 2]).tobytes()
    server.sendmsg([len(text).to_bytes(LENGTH)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    server.sendall(text)
    os.chdir("/")  # who looks for the processes that work in a folder finds the child alone
    answer = server.recv(16)
    if not answer:
        os._exit(74)  # the server has died
    status = int(answer)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def _program(arguments: list[str]) -> dict | None:
    """Return how Python was called to run one of WARMED: its path, its module or its text, and the arguments."""
    if arguments == WORKER:
        return {"text": arguments[-1], "arguments": [], "safe": False}
    safe = arguments[:1] == ["-P"]
    arguments = arguments[safe:]
    if arguments[:2] == ["-m", "replaceme.cli"]:
        return {"module": arguments[1], "arguments": arguments[2:], "safe": safe}
    if arguments[:1] == ["-c"] and arguments[1].startswith(MARK):
        return {"text": arguments[1], "arguments": arguments[2:], "safe": safe}
    if arguments and Path(arguments[0]).name in WARMED:
        return {"path": arguments[0], "arguments": arguments[1:], "safe": safe}
    return None


class Children:
    """The children of the server by the socket on which each one's end is awaited."""

    def __init__(self, listener: socket.socket) -> None:
        import selectors

        self.numbers: dict[int, tuple[int, socket.socket]] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)

    def run(self, parent: int) -> None:
        """Fork children until this process is killed, or its parent is gone."""
        while os.getppid() == parent:
            for key, _ in self.selector.select(timeout=5):
                key.data(key.fileobj)

    def accept(self, listener: socket.socket) -> None:
        """Fork a child for who asks."""
        asking, _ = listener.accept()
        head, rights, *_ = asking.recvmsg(LENGTH, socket.CMSG_SPACE(12))
        length, text = int.from_bytes(head), b""
        while len(text) < length:
            text += asking.recv(length - len(text))
        files = array.array("i", rights[0][2][:12]).tolist()
        sys.stdout.flush()
        number = os.fork()
        if number == 0:
            try:
                _become(marshal.loads(text), files)
            finally:
                os._exit(70)
        for file in files:
            os.close(file)
        ended = os.pidfd_open(number)
        self.numbers[ended] = number, asking
        self.selector.register(ended, 1, self.report)
        self.selector.register(asking, 1, lambda _: self.kill(ended))

    def kill(self, ended: int) -> None:
        """Kill a child whose asker is gone, unless both have ended at once."""
        if ended not in self.numbers:
            return
        number, asking = self.numbers[ended]
        self.selector.unregister(asking)
        os.kill(number, signal.SIGKILL)

    def report(self, ended: int) -> None:
        """Say how a child ended."""
        number, asking = self.numbers.pop(ended)
        self.selector.unregister(ended)
        os.close(ended)
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        if asking in self.selector.get_map():
            self.selector.unregister(asking)
            asking.sendall(str(status).encode())
        asking.close()


def _become(request: dict, files: list[int]) -> None:
    """Run a program in this process and end it."""
    import atexit

    atexit._clear()  # what the libraries have yet to do at the end of the server
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.closerange(3, 4096)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, soft in request["limits"].items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    program = request["program"]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv = [program.get("path") or program.get("module", "-c"), *program["arguments"]]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if Path(program.get("path", "")).name != "replaceme" and CODE not in given:
        for name in [name for name in sys.modules if name.partition(".")[0] == "replaceme"]:
            del sys.modules[name]
    first = [] if program["safe"] else [str(Path(program["path"]).parent) if "path" in program else str(Path.cwd())]
    sys.path[:] = [*first, *given, *sys.path]
    _end(_status(program))


def _status(program: dict) -> int:
    """Return the exit code of a program that is run as Python runs it."""
    import runpy
    from types import ModuleType

    import watch

    watch.watch()
    try:
        if "text" in program:
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(program["text"], "<string>", "exec"), vars(main))
        elif "path" in program:
            runpy.run_path(program["path"], run_name="__main__")
        else:
            runpy.run_module(program["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(status: int) -> None:
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status & 255)


def serve(where: str) -> None:
    """Import PRELOADED and the package once somebody asks through a socket of this path, then run what is asked for."""
    import gc
    import importlib
    import select
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
    listener.listen(64)
    parent = os.getppid()
    while not select.select([listener], [], [], 5)[0]:
        if os.getppid() != parent:
            return
    rooms = [(room, Path(CODE) / "replaceme" / room) for room in ("steps", "workflow")]
    package = sorted(f"replaceme.{room}.{path.stem}" for room, folder in rooms for path in folder.glob("[!_]*.py"))
    sys.path.insert(0, CODE)
    for name in ("watch", *PRELOADED, "replaceme.cli", *package):
        importlib.import_module(name)
    _use_once()
    sys.path.remove(CODE)
    sys.modules["snakemake.cli"].get_argument_parser()  # which looks for the plugins, and keeps them
    sys.path[:] = sys.path[1:]  # without the folder of this file
    gc.collect()
    gc.freeze()
    _into_large_pages()
    Children(listener).run(parent)


def _use_once() -> None:
    """Do once what most steps do: what libraries do at the first time only takes longer than a tiny model does."""
    import io
    import tempfile

    import torch
    from matplotlib.figure import Figure
    from transformers import LlamaConfig, LlamaForCausalLM

    from replaceme.models.loading import load_causal_model
    from replaceme.provenance.environment import versions

    versions()
    figure = Figure()
    figure.subplots().set_title("text")
    figure.savefig(io.BytesIO(), format="svg")
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), torch.inference_mode():
        LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(folder)
        load_causal_model(folder, "float32", "cpu").generate(torch.ones(1, 4, dtype=torch.int64), max_new_tokens=2)


def _into_large_pages() -> None:
    """Ask for large pages, of which a fork copies, and the end of a child drops, 500 times fewer entries."""
    import ctypes

    size, collapse = 2 << 20, 25
    madvise = ctypes.CDLL(None).madvise  # what it cannot do is left as it is
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, rights, _, device, *_ = line.split(maxsplit=4)
        begin, end = (int(number, 16) for number in area.split("-"))
        begin, end = -(-begin // size) * size, end // size * size
        if rights == "rw-p" and device == "00:00" and begin < end:
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), collapse)


if __name__ == "__main__":
    CODE = sys.argv[2]
    serve(sys.argv[1])
