"""Keep the state of an unfinished fit on disk, so that an interrupted one continues and ends with the same bits."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_tensors, save_tensors

LOGGER = logging.getLogger(__name__)
STATE = ".fit-state-{group}.safetensors"
SECONDS = 10.0  # between two saves at least
SHARE = 20  # and so many times what the last save took, up to so many times SECONDS
Tensors = dict[str, torch.Tensor]


def here(device: str | torch.device, *modules: str) -> dict[str, Any]:
    """Return the facts beside the inputs that fix the bits of a computation: the code of `modules`, torch, device and
    threads.
    """
    from replaceme.provenance.code_hash import fingerprint

    name = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else str(device)
    code = fingerprint(*modules)
    return {"code": code, "torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}


class State:
    """A safetensors file beside the output of a fit; without a path nothing is saved.

    `identity` is plain data that says which fit it is: rows, options, `here`. A file of any other fit is ignored.
    """

    def __init__(self, path: str | Path | None = None, identity: Any = None, seconds: float = SECONDS) -> None:
        """Keep the state in `path`, saved every `seconds`, less often where saving itself takes long; 0: always."""
        self.path = None if path is None else Path(path)
        self.identity, self.seconds = json.loads(json.dumps(identity)), seconds  # as it will be read
        self._saved, self._took = time.monotonic(), 0.0

    def of(self, **more: Any) -> "State":
        """Return the state in the same file of the same fit if `more` is so too."""
        return State(self.path, {"of": self.identity, **more}, self.seconds)

    def read(self, device: str | torch.device = "cpu") -> tuple[Tensors, dict[str, Any]] | None:
        """Return (tensors, record) of the last save of exactly this fit; None, with a log line, for a file of another
        one.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            tensors, stamp = load_tensors(self.path)
        except ReplaceMeError as error:
            LOGGER.warning("%s: not a usable state, the fit starts anew (%s)", self.path, error)
            return None
        if stamp.get("identity") != self.identity:
            LOGGER.info("%s: state of another fit, ignored; this one starts anew", self.path)
            return None
        LOGGER.info("%s: the fit goes on where it was interrupted", self.path)
        return {name: tensor.to(device) for name, tensor in tensors.items()}, stamp["record"]

    def write(self, content: Callable[[], tuple[Tensors, dict[str, Any]]]) -> None:
        """Save what `content` returns, (tensors, JSON-able record), atomically, when it is time.

        `content` is called only then. It may return the live tensors: they are copied to the file at once.
        """
        begin, wait = time.monotonic(), min(max(self.seconds, SHARE * self._took), SHARE * self.seconds)
        if self.path is None or begin - self._saved < wait:
            return
        tensors, record = content()
        save_tensors(self.path, tensors, {"identity": self.identity, "record": record})
        self._saved = time.monotonic()
        self._took = self._saved - begin

    def remove(self) -> None:
        """Remove the state of a fit that is done and written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
