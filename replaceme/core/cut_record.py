"""What a cut.json says: the runs of blocks that go."""

from typing import Any


def groups_of(cut: dict[str, Any]) -> list[tuple[int, int]]:
    """The runs of blocks [start, end) that a cut.json removes, in order."""
    return [(start, end) for start, end in cut["groups"]]


def described(cut: dict[str, Any]) -> str:
    """The runs of blocks of a cut.json as text, `[2, 5), [7, 10)`."""
    return ", ".join(f"[{start}, {end})" for start, end in groups_of(cut))
