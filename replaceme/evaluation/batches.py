"""Choose the contexts and answers that run in one forward pass: grouped by context, sorted, as many as fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from replaceme.activations.head import LOGITS

if TYPE_CHECKING:
    from torch import nn

CPU_TOKENS = 2048  # of a pass on a CPU
GPU_TOKENS = 2**16  # of a pass on a GPU, at most
GPU_SHARE = 0.25  # of a GPU's memory, for what a pass computes
CACHED = 8  # tokens that a cache may hold for each of a pass
# operations that take as long as starting those of one block: on an H200 2.5 ms, at 5e14 a second
STARTED = {"cuda": 1.25e12, "cpu": 3e7}


@dataclass(frozen=True)
class Room:
    """The size of a forward pass: padded tokens, rows of logits, sequences; `few` tokens take no less time than one."""

    tokens: int
    rows: int
    sequences: int
    few: int = 1

    @property
    def half(self) -> "Room":
        """Half of the room, for a device that had none for the whole."""
        return Room(*(max(1, size // 2) for size in (self.tokens, self.rows, self.sequences)), self.few)


@dataclass(frozen=True)
class Group:
    """A context, the different answers to it, and for each answer the numbers of the queries that ask for it.

    A single answer runs with its context, all its tokens but the last; of several each runs after the context has.
    """

    context: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    queries: tuple[tuple[int, ...], ...]

    @property
    def shared(self) -> bool:
        """True if answers run after the context, rather than with it."""
        return len(self.answers) > 1

    @cached_property
    def sequence(self) -> tuple[int, ...]:
        """Tokens of the first pass."""
        return self.context if self.shared else self.context + self.answers[0][:-1]

    @property
    def rows(self) -> int:
        """Number of rows of logits that the first pass needs, at the end of the sequence."""
        return 1 if self.shared else len(self.answers[0])

    @cached_property
    def tails(self) -> list[tuple[int, tuple[int, ...]]]:
        """Answers of more than one token, which need a second pass, with their places among all."""
        return [(k, one) for k, one in enumerate(self.answers) if self.shared and len(one) > 1]


def grouped(queries: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int, reuse: bool) -> list[Group]:
    """Gather the answers to each context, the longest first; without `reuse` each answer is a group of its own.

    Of a context and an answer of more than `longest` + 1 tokens together the last so many count, so that they share
    nothing with others.
    """
    contexts: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    alone: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for number, (context, answer) in enumerate(queries):
        if reuse and len(context) + len(answer) <= longest + 1:
            contexts.setdefault(tuple(context), {}).setdefault(tuple(answer), []).append(number)
        else:
            whole = (*context, *answer)[-(longest + 1) :]
            place = len(whole) - len(answer)
            alone.setdefault((whole[:place], whole[place:]), []).append(number)
    groups = [Group(one, tuple(answers), tuple(map(tuple, answers.values()))) for one, answers in contexts.items()]
    groups += [Group(context, (answer,), (tuple(numbers),)) for (context, answer), numbers in alone.items()]
    return sorted(groups, key=lambda group: (-len(group.sequence), group.sequence, group.answers))


def first_batch(groups: Sequence[Group], room: Room) -> list[Group]:
    """Return as many of the first groups as the room holds, or one, whose answers may need several passes.

    They are sorted, the longest first.
    """
    width = len(groups[0].sequence)
    count = rows = tails = longest = after = 0
    for count, group in enumerate(groups):
        rows += group.rows
        tails += len(group.tails)
        longest = max([longest, *(len(answer) - 1 for _, answer in group.tails)])
        after += sum(len(answer) - 1 for _, answer in group.tails)
        full = (
            max((count + 1) * width, after) > room.tokens
            or tails * (width + longest) > CACHED * room.tokens
            or max(rows, after) > room.rows
            or max(count + 1, tails) > room.sequences
        )
        if full and count:
            return list(groups[:count])
    return list(groups[: count + 1])


def room_of(model: "nn.Module", most: int | None = None) -> Room:
    """Return the room of a pass of a model, by the memory that its device has in all; `most` sequences at most."""
    import torch

    sizes, device = model.config.get_text_config(), next(model.parameters()).device
    sequences = 2**31 if most is None else most
    inner = getattr(sizes, "intermediate_size", None) or 4 * sizes.hidden_size
    # of a token in one block: about four projections of the attention, three of the MLP
    operations = 2 * sizes.hidden_size * (4 * sizes.hidden_size + 3 * inner)
    few = max(1, int(STARTED[device.type] / operations))
    if device.type == "cpu":
        return Room(CPU_TOKENS, max(1, LOGITS // sizes.vocab_size), sequences, few)
    memory = GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    # of a token: the states of a block and of its MLP, and the keys and values of all blocks
    token = model.dtype.itemsize * (
        16 * sizes.hidden_size + 4 * inner + 2 * sizes.num_hidden_layers * sizes.hidden_size
    )
    row = (model.dtype.itemsize + 8) * sizes.vocab_size  # logits, and a part of them in float32
    return Room(min(GPU_TOKENS, int(memory / token)), max(1, int(memory / row)), sequences, few)
