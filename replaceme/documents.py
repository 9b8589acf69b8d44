"""What a calibration's text is read from, and its documents one after another, in an order fixed by the seed.

Sources: `micro` and `micro-training` (the embedded generator; they share no document), local .txt, .jsonl and .parquet
files, and Hub datasets (streamed).
"""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replaceme.config import CalibrationConfig
from replaceme.config.calibrations import MICRO
from replaceme.conversations import chat, column_of, messages_of
from replaceme.errors import ReplaceMeError
from replaceme.files import note_read, sha256
from replaceme.images import check_images
from replaceme.samples import stream
from replaceme.templates import filled
from replaceme.text_files import check_size, read_text

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SHUFFLE_BUFFER = 10_000  # records held while shuffling a stream


def is_local(dataset: str) -> bool:
    """Whether a dataset is a file rather than generated or a Hub id."""
    return dataset not in MICRO and (Path(dataset).suffix in READERS or Path(dataset).exists())


def check_source(config: CalibrationConfig) -> None:
    """Raise ReplaceMeError when local calibration files are missing or of an unknown kind."""
    if config.images is not None:
        return check_images(config)
    if config.dataset is None:  # made of other calibrations
        return
    if config.dataset in MICRO and config.name is not None:
        from replaceme.micro.world import FAMILIES

        known = FAMILIES if config.dataset == "micro" else {}
        if config.name not in known:
            named = f"name one of {', '.join(known)}, or none" if known else "drop name"
            raise ReplaceMeError(f"{config.dataset}: no documents named {config.name!r}; {named}")
    path = Path(config.dataset)
    if not is_local(config.dataset):
        return
    if not path.is_file():
        raise ReplaceMeError(f"{path}: no such file; `dataset` is micro, a .txt, .jsonl or .parquet file, or a Hub id")
    if path.suffix not in READERS:
        raise ReplaceMeError(f"{path}: unknown kind of file; use one of {', '.join(READERS)}")


def describe(config: CalibrationConfig) -> dict[str, Any]:
    """What identifies the source beyond its name: the hash of a local file."""
    check_source(config)
    if not is_local(config.dataset):
        return {}
    check_size(Path(config.dataset))
    note_read(config.dataset)
    return {"file_sha256": sha256(config.dataset)}


def read_documents(config: CalibrationConfig, tokenizer: Any) -> Iterator[str]:
    """Documents of a source, in an order fixed by the seed (a .txt file is one document)."""
    if config.dataset == "micro":
        from replaceme.micro.world import documents

        return documents(config.seed, config.name)
    if config.dataset == "micro-training":
        from replaceme.micro.world import training_documents

        return training_documents(config.seed)
    if config.dataset.endswith(".txt"):
        return iter([read_text(config.dataset)])
    if config.conversations is None:
        return (text_of(record, config) for record in records(config))
    return (chat(turns, tokenizer, config.dataset) for turns in conversations(config, tokenizer))


def records(config: CalibrationConfig) -> Iterator[dict]:
    """Records of a file or of a Hub dataset, in an order fixed by the seed."""
    local = {}
    if is_local(config.dataset):
        # escaped, as what is read is this file and not what it matches
        local = {"path": READERS[Path(config.dataset).suffix], "data_files": glob.escape(config.dataset)}
    return stream(config, config.dataset, SHUFFLE_BUFFER, **local)


def text_of(record: dict, config: CalibrationConfig) -> str:
    """The text of a record: a column of it, or a template filled with several."""
    if config.template is not None:
        return filled(config.template, record, config.dataset)
    text = column_of(record, config.source_column, config.dataset)
    if not isinstance(text, str | int | float | None):
        raise ReplaceMeError(
            f"{config.dataset}: column {config.source_column!r} holds {type(text).__name__}, not text; name another "
            "one by `column`, or conversations by `conversations`"
        )
    return str(text or "")


def conversations(config: CalibrationConfig, tokenizer: Any) -> Iterator[list[dict[str, str]]]:
    """Conversations of a source as lists of {role, content}, in an order fixed by the seed."""
    if not tokenizer.chat_template:
        raise ReplaceMeError(
            f"{config.dataset}: conversations need a chat template, and the model's tokenizer has none"
        )
    return (messages_of(record, config) for record in records(config))
