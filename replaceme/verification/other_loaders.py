"""Try a merged folder with other consumers of Hugging Face checkpoints: vLLM and llama.cpp, where installed.

Their failures are reported and stop nothing: not every model, tokenizer or machine that transformers takes is theirs.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from replaceme.models.checkpoints import read_config
from replaceme.models.custom_code import is_separate
from replaceme.verification.outcome import NotChecked, outcome
from replaceme.verification.reload import run_alone

CONVERTER = "convert_hf_to_gguf.py"
SECONDS = 3600
GENERATE = """
import sys
from vllm import LLM, SamplingParams
options = {"max_model_len": 64, "enforce_eager": True}
found = LLM(model=sys.argv[1], **options).generate(
    {"prompt_token_ids": [1, 2, 3, 4]}, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
)
sys.exit(0 if len(found[0].outputs[0].token_ids) == 8 else "fewer tokens than asked for")
"""


def external_checks(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return the outcome of each loader, run in a process of its own."""
    return {"vllm": outcome(_check_vllm, folder), "llama.cpp": outcome(_check_llama_cpp, folder)}


def _check_vllm(folder: str | Path) -> None:
    """Load the folder with vLLM and generate."""
    if importlib.util.find_spec("vllm") is None:
        raise NotChecked("vllm is not installed")
    _refuse_own_code(folder)
    run_alone([sys.executable, "-P", "-c", GENERATE, str(Path(folder).resolve())], SECONDS)


def _check_llama_cpp(folder: str | Path) -> None:
    """Convert the folder to GGUF by llama.cpp's script; the file is discarded."""
    command = _converter()
    _refuse_own_code(folder)
    with tempfile.TemporaryDirectory(prefix="replaceme-") as work:
        run_alone([*command, str(Path(folder).resolve()), "--outfile", f"{work}/model.gguf"], SECONDS)


def _converter() -> list[str]:
    """Return the command of the conversion script, from the folder LLAMA_CPP or the path."""
    if "LLAMA_CPP" in os.environ:
        script = Path(os.environ["LLAMA_CPP"]) / CONVERTER
        if not script.is_file():
            raise NotChecked(f"no {CONVERTER} in {script.parent} (LLAMA_CPP)")
        return [sys.executable, str(script)]
    found = shutil.which(CONVERTER)
    if found is None:
        raise NotChecked(f"{CONVERTER} is not on PATH, and LLAMA_CPP names no folder of llama.cpp")
    return [found]


def _refuse_own_code(folder: str | Path) -> None:
    if is_separate(read_config(folder)):
        raise NotChecked("placement block is an architecture of its own")
