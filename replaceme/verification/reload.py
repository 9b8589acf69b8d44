"""Load a model folder as a fresh process with plain transformers would, and compute the logits to compare with.

A process without other work may load the folder itself, before it uses transformers (`core.fresh`), while replaceme
cannot be imported. To import torch and transformers takes longer than a small model does: another process can be
started for that before there is a folder.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.activations.capture import model_inputs, placed
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import release
from replaceme.models.checkpoints import read_config
from replaceme.models.custom_code import check_code, is_separate
from replaceme.models.loading import load_text_model
from replaceme.models.model_config import family_of, is_encoder
from replaceme.models.probed import SECTION, class_with_head
from replaceme.verification import reload_worker as plain

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.models.family import Family

# what lets a loaded original, base model and family, run as the new model does
Running = Callable[["nn.Module", "Family"], AbstractContextManager[None]]
# the folder that holds this package, beside which `kernels` has the name of another's
HOME = Path(__file__).resolve().parents[2]
SEQUENCES, LENGTH, NEW_TOKENS = 2, 32, 8
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def fixed_tokens(config: dict[str, Any]) -> Tokens:
    """Return two sequences of random token ids, always the same; the second is padded on the left, as for
    generation, and of an encoder on the right.
    """
    import torch

    sizes = config.get(SECTION) or config
    longest = sizes.get("max_position_embeddings") or sizes.get("n_positions") or LENGTH + NEW_TOKENS
    length = min(LENGTH, longest - NEW_TOKENS)
    input_ids = torch.randint(sizes["vocab_size"], (SEQUENCES, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(SEQUENCES, length, dtype=torch.bool)
    mask[-1, : length // 3] = False
    return Tokens(input_ids, mask.flip(1) if is_encoder(config) else mask)


def hooked_logits(folder: str | Path, running: Running, tokens: Tokens, device: str) -> "torch.Tensor":
    """Return the logits, float32 on the CPU, of an original model that runs as the new one does; it is freed
    afterwards. Of an encoder it is what its class puts out first, by samples, such as its last states.
    """
    import torch

    model = load_text_model(folder, "float32", device)
    family = family_of(read_config(folder), str(folder))
    with torch.inference_mode(), running(model.base_model, family):
        logits = model(**model_inputs(model, tokens))[0].float().cpu()
    del model
    release(device)  # the fresh process needs the memory
    return logits


class Fresh:
    """A process that loads a folder with plain transformers: another one, started within the block, or this one.

    Another one imports what a model of type `model_type` takes while this one goes on, waits to be asked, and ends with
    this one. `here`: in this process, which must be fresh, and keeps the code that it loads in `work` from then on.
    """

    def __init__(self, model_type: str, here: bool = False) -> None:
        self.here, self._model_type = here, model_type
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Fresh":
        self._folder = tempfile.TemporaryDirectory(prefix="replaceme-")
        self.work = Path(self._folder.name)
        self._cache = {"HF_MODULES_CACHE": str(self.work / "modules")}
        if not self.here:
            # -P: the folder of the file is not searched for modules, of which one is called `statistics`
            command = [sys.executable, "-P", plain.__file__, str(self.work), self._model_type]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            self._process = subprocess.Popen(command, env=_environment(self._cache), **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def ask(self, question: dict[str, Any]) -> None:
        """Let another process begin with the answer; this one answers when it is fetched."""
        (self.work / "question.json").write_text(json.dumps(question), encoding="utf-8")
        if self._process is not None:
            with suppress(BrokenPipeError):  # `answer` says why it ended
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()

    def answer(self) -> dict[str, str | None]:
        """Return the answer, whose logits are in `work`; raises ReplaceMeError when the process died."""
        if self._process is None:
            os.environ.update(QUIET | self._cache)
            with _hidden():
                plain.reply(self.work)
            gc.collect()  # the model, before another is loaded
        else:
            said = [one.decode(errors="replace") for one in self._process.communicate()]
            _require_ended_well(self._process.returncode, *said)
        return json.loads((self.work / "answer.json").read_text(encoding="utf-8"))


def question(folder: str | Path, tokens: Tokens | None, device: str) -> dict[str, Any]:
    """Return the question for the fault of each part of a folder; without tokens no weights are loaded.

    The folder's own code runs only if it is this package's.
    """
    import torch

    config = read_config(folder)
    separate = is_separate(config)
    if separate:
        check_code(folder)
    where = {
        "pretrained_model_name_or_path": str(Path(folder).resolve()),
        "trust_remote_code": separate,
        "local_files_only": True,
    }
    inputs = None
    if tokens is not None:
        given = placed(tokens, torch.device("cpu"))
        inputs = {name: one.tolist() for name, one in given.items()}
    auto_class = "AutoModelForCausalLM" if separate else class_with_head(config).__name__
    new_tokens = 0 if is_encoder(config) else NEW_TOKENS
    runs = {"auto_class": auto_class, "new_tokens": new_tokens, "threads": torch.get_num_threads(), "device": device}
    return {"where": where, "inputs": inputs, **runs}


@contextmanager
def _hidden() -> Iterator[None]:
    """Hide this package from imports within the block, as where it is not installed."""
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != HOME]
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "replaceme"}
    for name in ours:
        del sys.modules[name]
    sys.modules["replaceme"] = None  # the import system takes that for a module that is not there
    try:
        yield
    finally:
        del sys.modules["replaceme"]
        sys.modules.update(ours)
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]


class Ended(ReplaceMeError):
    """A process that ended with another code than 0; `said` is all that it wrote."""

    def __init__(self, code: int, said: str) -> None:
        """Name the code and the last line."""
        self.said = said
        super().__init__(f"the process ended with code {code} ({(said or 'nothing said').splitlines()[-1]})")


def run_alone(command: Sequence[str], seconds: float, more: dict[str, str] | None = None) -> None:
    """Run a command offline to its end, with `more` in its environment; raises Ended when it fails, ReplaceMeError when
    it takes too long.
    """
    given = {"env": _environment(more or {}), "timeout": seconds}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **given)
    except subprocess.TimeoutExpired:
        raise ReplaceMeError(f"{Path(command[0]).name}: no answer within {seconds:.0f} s") from None
    except OSError as error:
        raise ReplaceMeError(f"{command[0]}: cannot be run ({error})") from error
    _require_ended_well(done.returncode, done.stdout, done.stderr)


def _require_ended_well(code: int, stdout: str, stderr: str) -> None:
    """Raise Ended if a process ended with an error."""
    if code != 0:
        raise Ended(code, stderr.strip() or stdout.strip())


def _environment(more: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that is offline, and in which this package is not found."""
    return os.environ | QUIET | {"PYTHONPATH": _path_without_us()} | more


def _path_without_us() -> str:
    """Return PYTHONPATH without the folder that holds this package."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(path for path in paths if path and Path(path).resolve() != HOME)
