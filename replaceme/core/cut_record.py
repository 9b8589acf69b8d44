"""The record cut.json, which lists the runs of blocks that a cut removes."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json, write_json
from replaceme.core.places import HALF, Span, amount, in_middle, pairs_up, shown

NEEDED = ("groups", "blocks", "num_blocks", "metric")
ONLY_WHERE_KNOWN = ("parts", "search", "adjacency", "coefficients", "budget", "model_sha256", "measured_on")


@dataclass(frozen=True)
class Cut:
    """The cut of a model: what lies between the places start and end (see `places`) of each of `groups` goes.

    These are `blocks` in all of its `num_blocks`; from the middle of one to that of another where places are halves.

    `metric` is what they were chosen by (`given`: by hand) over the tokens of `position`, `candidates` all that were
    compared, with their values. Of several groups `parts` are those compared, before any were merged; of a choice by
    merging `coefficients` are those of each group's carrier and blocks. `budget`: the share that was to be removed,
    its unit, and what is saved in that. `measured_on`: the text, as far as it is known.
    """

    groups: list[Span]
    blocks: int
    num_blocks: int
    metric: str
    position: str | None = None
    parts: list[Span] | None = None
    search: str | None = None
    adjacency: str | None = None
    coefficients: list[list[int]] | None = None
    budget: dict[str, Any] | None = None
    candidates: list[dict[str, Any]] = field(default_factory=list)
    model_sha256: str | None = None
    measured_on: dict[str, Any] | None = None

    @property
    def in_middle(self) -> bool:
        """True if a group begins or ends in the middle of a block."""
        return any(in_middle(place) for group in self.groups for place in group)

    @property
    def pairs_up(self) -> bool:
        """True if each attention that stays has an MLP, and the other way round."""
        return pairs_up(self.groups, self.num_blocks)

    @property
    def amount(self) -> str:
        """Number of removed blocks, or of attentions and MLPs, in words."""
        return amount(self.groups, self.num_blocks)

    @property
    def span(self) -> str:
        """Runs of removed blocks as text, `[2, 5), [7, 10)`."""
        return shown(self.groups)

    @property
    def content(self) -> dict[str, Any]:
        """Content of cut.json."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        known = {key: value for key, value in values.items() if value is not None or key not in ONLY_WHERE_KNOWN}
        return known | {key: [list(span) for span in known[key]] for key in ("groups", "parts") if key in known}

    @property
    def provenance(self) -> dict[str, Any]:
        """Part of replaceme.json about the cut: all but the candidates."""
        return {key: value for key, value in self.content.items() if key != "candidates"}

    def save(self, path: str | Path) -> None:
        """Write cut.json."""
        write_json(path, self.content)

    @staticmethod
    def load(path: str | Path) -> "Cut":
        """Read cut.json; raises ReplaceMeError for another file, and for groups that are no runs of blocks."""
        return Cut.of(read_json(path), str(path))

    @staticmethod
    def of(content: Any, where: str = "cut") -> "Cut":
        """Return the cut with the `content` or `provenance` of one; errors as in `load`, beginning with `where`."""
        for key in NEEDED:
            if not isinstance(content, dict) or key not in content:
                raise ReplaceMeError(f"{where}: no {key!r} in it; is it the output of another step?")
        if not _are_groups(content["groups"], content["num_blocks"]):
            raise ReplaceMeError(f"{where}: its `groups` are no runs of blocks of a model; choose the cut again")
        known = {one.name: content[one.name] for one in fields(Cut) if one.name in content}
        return Cut(**known | {key: [tuple(span) for span in known[key]] for key in ("groups", "parts") if key in known})


def check_whole(cut: Cut, what: str | None) -> None:
    """Raise ReplaceMeError where a cut divides a block and `what`, if any is named, replaces whole blocks alone."""
    if cut.in_middle and what is not None:
        raise ReplaceMeError(f"cut {cut.span} divides a block, {what} takes whole blocks; change either")


def _are_groups(groups: Any, num_blocks: Any) -> bool:
    """Return whether these are pairs [start, end) of places."""
    if not isinstance(groups, list) or not isinstance(num_blocks, int):
        return False
    return all(isinstance(group, list) and len(group) == 2 and _is_group(*group, num_blocks) for group in groups)


def _is_group(start: Any, end: Any, num_blocks: int) -> bool:
    return all(isinstance(one, int | float) and HALF <= one <= num_blocks and one % HALF == 0 for one in (start, end))
