"""Generate the model's own answers to the prompts of a calibration, as conversations or texts to calibrate it on.

Of a conversation the turns before the first answer are the prompt; a plain text is one whole, and is continued. Tokens
are drawn by a seed of their own for each batch, so that the same model, prompts and batch size give the same answers.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.calibration.conversations import chat
from replaceme.calibration.documents import check_source, conversations, read_documents
from replaceme.calibration.samples import PassedOver, number_of
from replaceme.calibration.tokens import encode
from replaceme.config.calibrations import CalibrationConfig, GenerationConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """Token ids before an answer, and their origin: messages {role, content}, or a text."""

    ids: list[int]
    source: list[dict[str, str]] | str

    def answered(self, answer: str) -> dict[str, Any]:
        """Return the record for a file of answers: the prompt followed by the answer."""
        if isinstance(self.source, str):
            return {"text": self.source + answer}
        return {"messages": [*self.source, {"role": "assistant", "content": answer}]}


def prompts(config: CalibrationConfig, tokenizer: Any, longest: int, passed: PassedOver) -> Iterator[Prompt]:
    """Yield the prompts of a source in an order fixed by its seed, without those of more than `longest` tokens.

    Records of which none can be made are `passed` over.
    """

    def written_out(turns: list[dict[str, str]]) -> tuple[str, list[dict[str, str]]]:
        return chat(turns, tokenizer, config.dataset, answer=True), turns

    if config.conversations is not None:
        asked = (_before_the_answer(turns) for turns in conversations(config, tokenizer, passed))
        written: Iterable = passed.usable((turns for turns in asked if turns), written_out)
    else:
        written = ((text, text) for text in read_documents(config, tokenizer, passed))
    for text, source in written:
        for ids in encode([text], tokenizer, special_tokens=config.conversations is None):
            if 0 < len(ids) <= longest:
                yield Prompt(ids, source)


def _before_the_answer(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the turns up to the first answer; none if the conversation has no question."""
    asked = list(itertools.takewhile(lambda turn: turn["role"] != "assistant", turns))
    return asked if any(turn["role"] == "user" for turn in asked) else []


def answers(
    model: "PreTrainedModel", tokenizer: Any, config: CalibrationConfig, generation: GenerationConfig
) -> list[dict[str, Any]]:
    """Generate the model's answers to `config.samples` prompts of a source, as records of a .jsonl file.

    Prompts leave room for the answer in `config.tokens` tokens. Raises ReplaceMeError when there is no such prompt.
    """
    check_source(config)
    if config.pictures is not None:
        raise ReplaceMeError(f"{config.dataset}: answers are to prompts of text alone; drop `pictures`")
    samples = number_of(config)
    longest, passed = config.tokens - generation.new_tokens, PassedOver(config.dataset)
    asked = list(itertools.islice(prompts(config, tokenizer, longest, passed), samples))
    passed.report(len(asked))
    if not asked:
        raise ReplaceMeError(f"{config.dataset}: no prompt of at most {longest} tokens; raise tokens, or check columns")
    if len(asked) < samples:
        log.warning("%s: %d prompts found, %d asked for", config.dataset, len(asked), samples)
    found: list[dict[str, Any]] = []
    starts = range(0, len(asked), config.batch_size)
    for number, start in enumerate(progress(starts, "answers", len(starts), "batch")):
        batch = asked[start : start + config.batch_size]
        written = _generate(
            model, tokenizer, [prompt.ids for prompt in batch], generation, (config.seed << 20) + number
        )
        found += [prompt.answered(answer) for prompt, answer in zip(batch, written, strict=True)]
    return found


def _generate(
    model: "PreTrainedModel", tokenizer: Any, rows: Sequence[list[int]], generation: GenerationConfig, seed: int
) -> list[str]:
    """Generate the model's continuation of each row, as text."""
    import torch
    from transformers import GenerationConfig as Settings

    input_ids, mask = _padded_left(rows, tokenizer)
    drawn = generation.temperature > 0
    end = model.generation_config.eos_token_id
    settings = Settings(
        max_new_tokens=generation.new_tokens,
        do_sample=drawn,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
        pad_token_id=_padding(tokenizer),
        **({"temperature": generation.temperature, "top_k": 0, "top_p": 1.0} if drawn else {}),
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices):
        torch.manual_seed(seed % 2**63)
        written = model.generate(
            input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
        )
    ends = written[:, input_ids.shape[1] :].tolist()
    return [_text_after(row, end, tokenizer) for row, end in zip(rows, ends, strict=True)]


def _text_after(row: list[int], end: list[int], tokenizer: Any) -> str:
    """Decode the tokens `end` after those of `row`; decoded alone they might lose their leading space."""
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, row + end))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(end, skip_special_tokens=True)


def _padding(tokenizer: Any) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def _padded_left(rows: Sequence[list[int]], tokenizer: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return ids and mask, int64 [rows, longest], so that every row ends where its answer begins."""
    import torch

    width = max(map(len, rows))
    ids = [[_padding(tokenizer)] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
