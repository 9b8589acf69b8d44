"""Calibration text -> token ids and mask, deterministic in (source, seed), saved with hashes of what it holds.

For images see `images`.

Sources: `micro` and `micro-training` (the embedded generator; they share no document), local .txt, .jsonl and .parquet
files, and Hub datasets (streamed). Two ways to make sequences: `pack` joins documents and cuts full sequences;
otherwise each document is one sequence, truncated or right-padded, and the padding is masked in every later step.
"""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config import CalibrationConfig
from replaceme.config.calibrations import MICRO, packed_alone
from replaceme.errors import ReplaceMeError
from replaceme.files import load_tensors, note_read, sha256
from replaceme.images import Images, calibrate_images, check_images
from replaceme.progress import progress
from replaceme.samples import Samples, stream
from replaceme.templates import filled

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SHUFFLE_BUFFER = 10_000  # records held while shuffling a stream
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Tokens(Samples):
    """Calibration sequences: `input_ids` int64 and `mask` bool (true on real tokens), both [samples, tokens]."""

    input_ids: "torch.Tensor"
    mask: "torch.Tensor"

    def __getitem__(self, part: "slice | torch.Tensor") -> "Tokens":
        """Some of the sequences."""
        return Tokens(self.input_ids[part], self.mask[part])

    def join(self, *others: "Tokens") -> "Tokens":
        """These sequences and others after them; shorter ones are padded to the longest, and the padding masked."""
        import torch
        from torch.nn.functional import pad

        width = max(part.mask.shape[1] for part in (self, *others))
        wider = [[pad(x, (0, width - x.shape[1])) for x in (part.input_ids, part.mask)] for part in (self, *others)]
        return Tokens(*(torch.cat(parts) for parts in zip(*wider, strict=True)))

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Ids and mask."""
        return {"input_ids": self.input_ids, "attention_mask": self.mask}


def load_tokens(path: str | Path) -> tuple[Samples, dict[str, Any]]:
    """Read what `Samples.save` wrote, tokens or images, and check its hash."""
    tensors, metadata = load_tensors(path)
    if {"input_ids", "attention_mask"} <= tensors.keys():
        tokens = Tokens(tensors["input_ids"], tensors["attention_mask"])
    elif "pixel_values" in tensors:
        tokens = Images(tensors["pixel_values"], metadata["positions"])
    else:
        raise ReplaceMeError(f"{path}: not a token file; make it with `replaceme tokens`")
    if tokens.digest() != metadata.get("sha256"):
        raise ReplaceMeError(f"{path}: content does not match its hash; delete it and run again")
    return tokens, metadata


def calibration_for(folder: str | Path, config: CalibrationConfig) -> tuple[Samples, dict[str, Any]]:
    """Tokens or images of a calibration for the checkpoint in a folder, and the record of where they came from."""
    from replaceme.loading import load_tokenizer

    if config.images is not None:
        return calibrate_images(config, folder)
    return calibrate(config, load_tokenizer(folder))


def calibrate(config: CalibrationConfig, tokenizer: Any) -> tuple[Tokens, dict[str, Any]]:
    """Tokens of a calibration and the record of where they came from; raises ReplaceMeError when there is no text."""
    source = describe(config)
    documents = read_documents(config, tokenizer)
    # a chat template has already written the special tokens
    encoded = encode(documents, tokenizer, special_tokens=config.conversations is None)
    pack = packs(config)
    if pack:
        rows = packed(encoded, config, tokenizer)
    else:
        rows = (ids[: config.tokens] for ids in encoded if ids)
    tokens = stack(progress(itertools.islice(rows, config.samples), "tokens", config.samples, "sequence"), tokenizer)
    if len(tokens.input_ids) < config.samples:
        log.warning("%s: %d sequences found, %d asked for", config.dataset, len(tokens.input_ids), config.samples)
    record = config.model_dump(include=set(TOKEN_FIELDS) - {"images"})
    return tokens, {**record, "column": config.source_column, "pack": pack, **source}


TOKEN_FIELDS = (
    "dataset", "images", "name", "revision", "split", "column", "conversations", "template", "samples", "tokens",
    "pack", "seed",
)  # fmt: skip


def tokens_from_texts(texts: Iterable[str], tokenizer: Any, samples: int | None, length: int) -> Tokens:
    """Tokens of given texts, one sequence each, truncated to `length`."""
    rows = (ids[:length] for ids in encode(texts, tokenizer) if ids)
    return stack(itertools.islice(rows, samples), tokenizer)


def packs(config: CalibrationConfig) -> bool:
    """Whether documents are joined: as configured, else for the generator and for plain text."""
    return config.pack if config.pack is not None else packed_alone(config.dataset)


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
        try:
            return iter([Path(config.dataset).read_text(encoding="utf-8")])
        except UnicodeDecodeError as error:
            raise ReplaceMeError(f"{config.dataset}: not UTF-8 text (byte {error.start})") from error
    if config.conversations is None:
        return (text_of(record, config) for record in records(config))
    return (chat(turns, tokenizer, config.dataset) for turns in conversations(config, tokenizer))


def records(config: CalibrationConfig) -> Iterator[dict]:
    """Records of a file or of a Hub dataset, in an order fixed by the seed."""
    local = {}
    if is_local(config.dataset):
        local = {"path": READERS[Path(config.dataset).suffix], "data_files": config.dataset}
    return stream(config, config.dataset, SHUFFLE_BUFFER, **local)


def text_of(record: dict, config: CalibrationConfig) -> str:
    """The text of a record: a column of it, or a template filled with several."""
    if config.template is not None:
        return filled(config.template, record, config.dataset)
    return str(_column(record, config.source_column, config.dataset) or "")


def conversations(config: CalibrationConfig, tokenizer: Any) -> Iterator[list[dict[str, str]]]:
    """Conversations of a source as lists of {role, content}, in an order fixed by the seed."""
    if not tokenizer.chat_template:
        raise ReplaceMeError(
            f"{config.dataset}: conversations need a chat template, and the model's tokenizer has none"
        )
    return (messages_of(record, config) for record in records(config))


def messages_of(record: dict, config: CalibrationConfig) -> list[dict[str, str]]:
    """The conversation of a record as a list of {role, content}."""
    turns = _column(record, config.conversations, config.dataset) or []
    if not isinstance(turns, list):
        kind = type(turns).__name__
        raise ReplaceMeError(f"{config.dataset}: column {config.conversations!r} holds {kind}, not a list of turns")
    return [_message(turn, config.dataset) for turn in turns]


def _column(record: dict, column: str, dataset: str) -> Any:
    if column not in record:
        raise ReplaceMeError(f"{dataset}: no column {column!r}; its columns: {', '.join(record)}")
    return record[column]


def chat(messages: list[dict[str, str]], tokenizer: Any, dataset: str, answer: bool = False) -> str:
    """A conversation as the model's chat template writes it, with `answer` up to where the model should speak."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer) if messages else ""
    except Exception as error:  # templates raise jinja2's errors, on roles that do not alternate for instance
        raise ReplaceMeError(f"{dataset}: the model's chat template refuses a conversation ({error})") from error


def _message(turn: Any, dataset: str) -> dict[str, str]:
    """One turn in the chat template's form, from {role, content} or the {from, value} of ShareGPT-like sets."""
    if not isinstance(turn, dict):
        raise ReplaceMeError(f"{dataset}: a turn needs role/content or from/value, found {type(turn).__name__}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES or content is None:
        raise ReplaceMeError(f"{dataset}: a turn needs role/content or from/value, found {sorted(turn)} ({role!r})")
    return {"role": ROLES[role], "content": content}


def encode(documents: Iterable[str], tokenizer: Any, special_tokens: bool = True) -> Iterator[list[int]]:
    """Token ids of each non-empty document."""
    for document in documents:
        if document.strip():
            yield tokenizer(document, add_special_tokens=special_tokens, verbose=False)["input_ids"]


def packed(encoded: Iterator[list[int]], config: CalibrationConfig, tokenizer: Any) -> Iterator[list[int]]:
    """Full sequences of `tokens` ids from joined documents, each document closed by the end-of-sequence token.

    A stream is cut as it comes; a .txt file, one document, is cut into windows that the seed puts in random order.
    """
    closing = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = itertools.chain.from_iterable(document + closing for document in encoded)
    rows = iter(lambda: list(itertools.islice(ids, config.tokens)), [])
    if config.dataset.endswith(".txt"):
        windows = list(rows)
        if len(windows) > 1 and len(windows[-1]) < config.tokens:
            windows.pop()
        random.Random(config.seed).shuffle(windows)
        return iter(windows)
    return rows


def stack(rows: Iterable[list[int]], tokenizer: Any) -> Tokens:
    """Right-pad sequences to the longest and mask the padding; raises ReplaceMeError when there are none."""
    import torch

    rows = list(rows)
    if not rows:
        raise ReplaceMeError("calibration: no text left after dropping empty documents; check dataset and column")
    width = max(map(len, rows))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    input_ids = torch.full((len(rows), width), padding, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for k, ids in enumerate(rows):
        input_ids[k, : len(ids)] = torch.tensor(ids)
        mask[k, : len(ids)] = True
    return Tokens(input_ids, mask)
