"""The programs that a shortened folder is tried with: one file and one entry each."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from replaceme.exports import by_llama_cpp

# nats by which a token's log-likelihood may differ: float32 in another order of sums differs by 1e-6 to 1e-4, a wrong
# norm, position or weight by tenths
ALLOWED = 0.01


@dataclass(frozen=True)
class Program:
    """A program: `file` beside this one runs it (see `worker`), in this interpreter or in one that `python` names.

    `modules`: what that interpreter has to find; `absent`: instead, what is not found of it; `install`: what to do.
    """

    file: str
    install: str
    modules: tuple[str, ...] = ()
    python: str | None = None
    absent: Callable[[], str | None] | None = None
    allowed: float = ALLOWED

    @property
    def path(self) -> str:
        """Path of the file that runs it."""
        return str(Path(__file__).parent / f"{self.file}.py")

    @property
    def interpreter(self) -> str:
        """Path of the Python that runs it."""
        return os.environ.get(self.python or "") or sys.executable

    @property
    def is_elsewhere(self) -> bool:
        """True if that is another Python, with packages of its own."""
        return self.interpreter != sys.executable

    def missing(self) -> str | None:
        """Return what is missing to run it here, None where it is installed (as far as can be told without it)."""
        if self.absent is not None:
            return self.absent()
        if self.is_elsewhere:
            found = shutil.which(self.interpreter)
            return None if found else f"no Python at {self.interpreter} ({self.python})"
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return f"{' and '.join(absent)} cannot be imported" if absent else None


PROGRAMS = {
    "ctranslate2": Program("by_ctranslate2", "`pip install ctranslate2`", ("ctranslate2",)),
    "llama.cpp": Program(
        "by_llama_cpp",
        "take llama.cpp's source and build or unpack its programs in it, and set LLAMA_CPP to that folder",
        absent=by_llama_cpp.missing,
    ),
    "mlx": Program("by_mlx", "`pip install 'mlx[cpu]' mlx-lm` (`mlx` alone on a Mac)", ("mlx", "mlx_lm")),
    "onnx": Program("by_onnx", "`pip install onnx onnxscript onnxruntime`", ("onnx", "onnxscript", "onnxruntime")),
    "vllm": Program(
        "by_vllm",
        "install it in an environment of its own and set VLLM_PYTHON to that environment's python",
        ("vllm",),
        python="VLLM_PYTHON",
    ),
}


def lines_of_missing(programs: Iterable[str]) -> list[str]:
    """Return a line for each of these programs that is not installed, with what to do."""
    return [
        f"{name}: not installed ({reason}); {PROGRAMS[name].install}"
        for name in programs
        if (reason := PROGRAMS[name].missing()) is not None
    ]
