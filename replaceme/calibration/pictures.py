"""Calibration prompts with pictures -> ids, pixel values and what else the model is given, by its own processor.

Each record has pictures in a column, and its text or conversation in another. The checkpoint's processor resizes the
pictures, puts as many tokens in the text as a picture takes, and says what else the model needs (`token_type_ids`, grid
sizes). One record is one sequence. `<image>` in a text, or a part {type: image} of a turn, is where a picture stands;
where neither is there, the pictures come first.
"""

import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.calibration.conversations import chat, messages_of
from replaceme.calibration.documents import describe, names_file, records, text_of
from replaceme.calibration.images import opened, upright
from replaceme.calibration.samples import PassedOver, column_of, number_of
from replaceme.calibration.sequences import IDS, MASK, Pictured
from replaceme.config.calibrations import CalibrationConfig
from replaceme.core.errors import ReplaceMeError, UnusableError, in_one_line, printable
from replaceme.core.progress import progress
from replaceme.models.checkpoints import read_config

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

log = logging.getLogger(__name__)
HERE = "<image>"  # in a text: a picture stands here
PART = {"type": "image"}
PICTURE_TOKEN = ("image_token_id", "image_token_index")  # entries of config.json
PICTURED_FIELDS = (
    "dataset", "name", "revision", "split", "conversations", "template", "pictures", "samples", "tokens", "seed",
)  # fmt: skip
Row = dict[str, "torch.Tensor"]  # what the processor makes of a record, of one sample


def load_processor(folder: str | Path) -> Any:
    """Load the processor of texts and pictures that lies beside a checkpoint; raises ReplaceMeError without one."""
    from transformers import AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        reason = "there is only a tokenizer or an image processor"
    except Exception as error:  # of several libraries, and what a broken file makes them raise can be anything
        found, reason = None, in_one_line(error)
    if getattr(found, "image_processor", None) is None or getattr(found, "tokenizer", None) is None:
        raise ReplaceMeError(
            f"{folder}: no usable processor of texts and pictures ({reason}); put preprocessor_config.json, "
            "processor_config.json and the tokenizer of this model there"
        )
    return found


def picture_token(folder: str | Path) -> int:
    """Return the id of the token in whose places a model puts a picture; raises ReplaceMeError where config.json does
    not say.
    """
    config = read_config(folder)
    found = next((config[key] for key in PICTURE_TOKEN if config.get(key) is not None), None)
    if found is None:
        raise ReplaceMeError(
            f"{folder}: config.json has no {' or '.join(PICTURE_TOKEN)}, so where the pictures stand is not known; "
            "calibrate without `pictures`"
        )
    return found


def calibrate_pictured(
    config: CalibrationConfig, folder: str | Path, more: int
) -> tuple[Pictured, Pictured | None, dict[str, Any]]:
    """Return the sequences of a calibration with pictures, at most `more` that come after them, and the record of their
    origin.

    Records that are longer than `tokens`, or of which the processor makes nothing, are passed over.
    """
    samples, source, passed = number_of(config), describe(config), PassedOver(config.dataset)
    processor, token = load_processor(folder), picture_token(folder)
    if config.conversations is not None and not getattr(processor, "chat_template", None):
        raise ReplaceMeError(
            f"{folder}: conversations need a chat template, and the model's processor has none; put "
            "chat_template.jinja there"
        )
    mark = _mark(folder, processor)
    rows = passed.usable(records(config), lambda record: _row(record, config, processor, mark))
    chosen = list(progress(itertools.islice(rows, samples), "tokens", samples, "sequence"))
    further = list(itertools.islice(rows, more))
    passed.report(len(chosen))
    if not chosen:
        raise ReplaceMeError(f"{config.dataset}: no record in it; give another data set")
    if len(chosen) < samples:
        log.warning("%s: %d sequences found, %d asked for", config.dataset, len(chosen), samples)
    _check_alike([*chosen, *further], str(folder))
    record = {
        **config.model_dump(include=set(PICTURED_FIELDS)),
        "column": config.source_column,
        "pack": False,
        **source,
    }
    sequences, *beyond = [_stacked(rows, processor, token) for rows in (chosen, further) if rows]
    if not sequences.picture_tokens.any():
        raise ReplaceMeError(f"{folder}: its processor makes no token {token}, the picture's by config.json")
    return sequences, *(beyond or [None]), record


def _row(record: dict, config: CalibrationConfig, processor: Any, mark: str) -> Row:
    """Return what the processor makes of a record; raises UnusableError where that is nothing, or too long."""
    where = config.dataset
    pictures = pictures_of(record, config)
    text = _prompt(record, config, processor, mark, len(pictures))
    try:
        found = processor(
            # a chat template has already written the special tokens
            text=[text], images=[pictures], add_special_tokens=config.conversations is None, return_tensors="pt"
        )  # fmt: skip
    except Exception as error:  # of a processor's own class, for pictures or places of them that it does not take
        raise UnusableError(f"{where}: the model's processor refuses a record ({in_one_line(error)})") from error
    length = found[IDS].shape[1]
    if length > config.tokens:
        raise UnusableError(
            f"{where}: a record of {length} tokens with its pictures, of which none is cut off; raise `tokens` "
            f"({config.tokens})"
        )
    return dict(found)


def pictures_of(record: dict, config: CalibrationConfig) -> "list[Image]":
    """Return the pictures of a record in RGB: one or a list, each a path beside the data set's file, bytes, {bytes} or
    {path}, or as `datasets` decodes it.
    """
    value = column_of(record, config.pictures, config.dataset)
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    if not values:
        raise UnusableError(f"{config.dataset}: no picture in column {config.pictures!r}; name another by `pictures`")
    return [_picture(one, config) for one in values]


def _picture(value: Any, config: CalibrationConfig) -> "Image":
    from PIL.Image import Image

    where = f"{config.dataset}: column {config.pictures!r}"
    if isinstance(value, Image):
        return upright(value)
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return opened(io.BytesIO(value), where)
    if not isinstance(value, str):
        raise UnusableError(f"{where} holds {type(value).__name__}, no picture; name another by `pictures`")
    if not names_file(config.dataset):
        raise UnusableError(
            f"{where} holds paths, which a data set of the Hub has no files for; take its picture column"
        )
    path = Path(config.dataset).parent / value
    if not path.is_file():
        raise UnusableError(f"{where}: no such file {printable(str(path))}")
    return opened(path, str(path))


def _mark(folder: str | Path, processor: Any) -> str:
    """Return what stands for a picture in a text that a processor is given."""
    # Gemma 3 has another mark than the tokens that it becomes; Qwen's stands between two that its templates write
    mark = getattr(processor, "boi_token", None) or getattr(processor, "image_token", HERE)
    around = [read_config(folder).get(f"vision_{side}_token_id") for side in ("start", "end")]
    return mark if None in around else mark.join(processor.tokenizer.convert_ids_to_tokens(around))


def _prompt(record: dict, config: CalibrationConfig, processor: Any, mark: str, count: int) -> str:
    """Return the text of a record with the processor's own marks where its pictures stand."""
    if config.conversations is not None:
        return chat(_placed(messages_of(record, config), count, config.dataset), processor, config.dataset)
    text = text_of(record, config)
    _check_places(text.count(HERE), count, config.dataset)
    return text.replace(HERE, mark) if HERE in text else mark * count + text


def _placed(messages: list[dict], count: int, where: str) -> list[dict]:
    """Return a conversation in parts, with a part for each picture; those without a place come first."""
    found = [{"role": one["role"], "content": list(_parts(one["content"], where))} for one in messages]
    places = sum(part == PART for one in found for part in one["content"])
    _check_places(places, count, where)
    if not places:
        asks = next((one for one in found if one["role"] == "user"), found[0])
        asks["content"][:0] = [PART] * count
    return found


def _check_places(places: int, count: int, where: str) -> None:
    if places not in (0, count):
        raise UnusableError(f"{where}: a record with {count} pictures and {places} places for them")


def _parts(content: Any, where: str) -> Iterator[dict[str, str]]:
    """Yield the parts of a turn's content, a text or a list of parts, as {type: text, text} or {type: image}."""
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            yield PART
        elif kind == "text" and isinstance(part.get("text"), str):
            for number, text in enumerate(part["text"].split(HERE)):
                if number:
                    yield PART
                if text.strip():
                    yield {"type": "text", "text": text}
        else:
            raise UnusableError(f"{where}: a turn has a part that is neither text nor image ({printable(str(kind))})")


def _by_token(name: str, row: Row) -> bool:
    return row[name].shape == row[IDS].shape and not row[name].is_floating_point()


def _check_alike(rows: list[Row], where: str) -> None:
    """Raise ReplaceMeError where the records gave tensors that do not fit into one batch."""
    first = rows[0]
    for row in rows:
        if row.keys() != first.keys():
            raise ReplaceMeError(f"{where}: its processor gives records with pictures unequal arguments")
        for name in row:
            if not _by_token(name, row) and row[name].shape[1:] != first[name].shape[1:]:
                raise ReplaceMeError(
                    f"{where}: its processor makes {name} of unequal sizes ({list(first[name].shape[1:])}, "
                    f"{list(row[name].shape[1:])}), which do not go into one batch; give pictures of one size"
                )


def _stacked(rows: list[Row], processor: Any, token: int) -> Pictured:
    """Pad the records on the right to the longest, and mask the padding."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(name: str, value: int = 0) -> "torch.Tensor":
        return pad_sequence([row[name][0] for row in rows], batch_first=True, padding_value=value)

    names = [name for name in rows[0] if name not in (IDS, MASK)]
    tokens = [name for name in names if _by_token(name, rows[0])]
    padding = processor.tokenizer.pad_token_id
    ids = padded(IDS, 0 if padding is None else padding)
    mask = pad_sequence([torch.ones(row[IDS].shape[1], dtype=torch.bool) for row in rows], batch_first=True)
    return Pictured(
        ids,
        mask,
        (ids == token) & mask,
        {name: padded(name) for name in tokens},
        {name: tuple(row[name] for row in rows) for name in names if name not in tokens},
    )
