"""Read the documents of a calibration's text one after another, in an order fixed by the seed.

Sources: `micro` and `micro-training` (the embedded generator; they share no document), local .txt, .jsonl and .parquet
files, and Hub datasets (streamed).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replaceme.calibration import images
from replaceme.calibration.conversations import chat, messages_of
from replaceme.calibration.record_files import check_columns, read_records
from replaceme.calibration.samples import PassedOver, column_of, shuffled, stream
from replaceme.config.calibrations import MICRO, CalibrationConfig, suffix_of
from replaceme.core.errors import ReplaceMeError, UnusableError
from replaceme.core.files import note_read, sha256
from replaceme.core.templates import as_text, filled
from replaceme.core.text_files import check_text, read_text

KINDS = (".txt", ".jsonl", ".json", ".parquet")
SHUFFLE_BUFFER = 10_000  # records held while shuffling a stream


def names_file(dataset: str) -> bool:
    """Return whether a dataset is a file rather than generated or a Hub id."""
    return dataset not in MICRO and (suffix_of(dataset) in KINDS or Path(dataset).exists())


def check_source(config: CalibrationConfig) -> None:
    """Raise ReplaceMeError when local calibration files are missing or of an unknown kind."""
    if config.images is not None:
        return images.check_images(config)
    if config.dataset is None:  # made of other calibrations
        return
    if config.dataset == "micro" and config.name is not None:
        from replaceme.micro.world import FAMILIES

        if config.name not in FAMILIES:
            raise ReplaceMeError(
                f"micro: no documents named {config.name!r}; name one of {', '.join(FAMILIES)}, or none"
            )
    path = Path(config.dataset)
    if not names_file(config.dataset):
        return
    if not path.is_file():
        raise ReplaceMeError(f"{path}: no such file; `dataset` is micro, a .txt, .jsonl or .parquet file, or a Hub id")
    if suffix_of(config.dataset) not in KINDS:
        raise ReplaceMeError(f"{path}: unknown kind of file; use one of {', '.join(KINDS)}")
    if suffix_of(config.dataset) == ".txt":
        check_text(path)
    else:
        check_columns(config.dataset, config.columns)


def describe(config: CalibrationConfig) -> dict[str, Any]:
    """Return facts that identify the source beyond its name: the hash of a local file."""
    check_source(config)
    if not names_file(config.dataset):
        return {}
    note_read(config.dataset)
    return {"file_sha256": sha256(config.dataset)}


def read_documents(config: CalibrationConfig, tokenizer: Any, passed: PassedOver) -> Iterator[str]:
    """Yield the documents of a source, in an order fixed by the seed (a .txt file is one document).

    Records that hold none are `passed` over.
    """
    if config.dataset == "micro":
        from replaceme.micro.world import documents

        return documents(config.seed, config.name)
    if config.dataset == "micro-training":
        from replaceme.micro.world import training_documents

        return training_documents(config.seed)
    if suffix_of(config.dataset) == ".txt":
        return iter([read_text(config.dataset)])
    if config.conversations is None:
        return passed.usable(records(config), lambda record: text_of(record, config))
    turns = conversations(config, tokenizer, passed)
    return passed.usable(turns, lambda one: chat(one, tokenizer, config.dataset))


def records(config: CalibrationConfig) -> Iterator[dict]:
    """Yield the records of a file or of a Hub data set, in an order fixed by the seed, with only the columns in use."""
    buffer = SHUFFLE_BUFFER if config.pictures is None else images.SHUFFLE_BUFFER
    if names_file(config.dataset):
        given = {"path": config.dataset, "columns": config.columns}
        return shuffled(read_records, given, config.seed, buffer)
    return stream(config, buffer)


def text_of(record: dict, config: CalibrationConfig) -> str:
    """Return the text of a record, from a column or a template of several; raises UnusableError if there is none."""
    if config.template is not None:
        text = filled(config.template, record, config.dataset)
    else:
        column = config.source_column
        text = as_text(column_of(record, column, config.dataset), column, config.dataset)
    if not text.strip():
        named = ", ".join(map(repr, (one for one in config.columns if one != config.pictures)))
        raise UnusableError(f"{config.dataset}: no text in column {named}; name another one by `column`")
    return text


def conversations(config: CalibrationConfig, tokenizer: Any, passed: PassedOver) -> Iterator[list[dict[str, str]]]:
    """Yield the conversations of a source as lists of {role, content}, in an order fixed by the seed."""
    if not tokenizer.chat_template:
        raise ReplaceMeError(
            f"{config.dataset}: conversations need a chat template, and the model's tokenizer has none"
        )
    return passed.usable(records(config), lambda record: messages_of(record, config))
