"""Name what a source is that is no checkpoint folder, and what to do: a GGUF file, an adapter, a single file."""

from pathlib import Path

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.files import read_json
from replaceme.dequantising.described import REMEDY
from replaceme.models.weights import AGAIN

ADAPTER = "adapter_config.json"
GGUF_START = b"GGUF"
CHECKPOINT = "a folder with config.json and .safetensors files"


def is_gguf(path: Path) -> bool:
    """Return whether a source is a GGUF file."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def check_gguf(path: Path) -> None:
    """Raise ReplaceMeError where a GGUF file is missing, or another kind of file."""
    if not path.is_file():
        raise ReplaceMeError(f"{path}: no such file; give a GGUF file")
    with path.open("rb") as file:
        if file.read(len(GGUF_START)) != GGUF_START:
            raise ReplaceMeError(f"{path}: does not begin as a GGUF file; {AGAIN}")


def check_is_checkpoint(path: Path) -> None:
    """Raise ReplaceMeError unless a path is a folder with a config.json."""
    if path.is_dir() and (path / "config.json").is_file():
        return
    if is_gguf(path):
        raise ReplaceMeError(f"{path}: a GGUF file, into which nothing can be folded; {REMEDY}")
    packed = min(map(str, path.glob("*.gguf")), default=None)
    if packed is not None:
        raise ReplaceMeError(f"{path}: no config.json, but GGUF files; give one of them, {packed}, and {REMEDY}")
    if path.is_file():
        raise ReplaceMeError(f"{path}: a file; give {CHECKPOINT}")
    if (path / ADAPTER).is_file():
        raise ReplaceMeError(
            f"{path}: an adapter{_of_base(path / ADAPTER)}, not a model; merge it into its base model (in PEFT "
            "`merge_and_unload()`, then `save_pretrained`) and give that folder"
        )
    if path.is_dir():
        raise ReplaceMeError(f"{path}: no config.json; give the folder of a Hugging Face checkpoint")
    raise ReplaceMeError(f"{path}: no such folder; give {CHECKPOINT}")


def _of_base(path: Path) -> str:
    """Return ` for NAME`, the base model that an adapter's settings name, if they do."""
    try:
        content = read_json(path)
    except ReplaceMeError:
        return ""
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return f" for {printable(base)}" if isinstance(base, str) and base else ""
