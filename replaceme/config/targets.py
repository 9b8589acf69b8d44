"""The keys `default` and `targets`: names for tables and figures that are made together."""

from collections.abc import Mapping
from typing import Any

from replaceme.config.base import strings
from replaceme.core.errors import printable

# rules of the workflow, whose names targets cannot have (a test compares them)
RULES = {
    "all", "candidates", "compare", "cost", "cut", "dequantise", "distances", "divergence", "divergence_healed",
    "enough", "evaluate", "evaluate_baseline", "evaluate_healed", "export", "export_healed", "figure_cut",
    "figure_declared", "figure_distances", "figure_enough", "figure_healing", "figure_table", "generate", "gram",
    "heal", "merge", "mix", "model", "parts", "parts_timed", "preflight", "provenance", "recycle", "rows", "speed",
    "speed_baseline", "speed_healed", "sum", "table", "tokens", "tokens_most", "transform", "verify",
}  # fmt: skip


def target_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return a line for each undefined name in `default` and `targets`, and each target whose name is not allowed."""
    tables, figures, targets = (
        raw[key] if isinstance(raw.get(key), dict) else {} for key in ("tables", "figures", "targets")
    )
    made = [*tables, *figures]
    lines = _name_problems("default", raw.get("default"), made)
    for target, names in targets.items():
        where = f"targets.{printable(target)}"
        lines += _name_problems(where, names, made)
        if target in RULES:
            lines.append(f"{where}: a rule of the workflow has this name; choose another")
        elif target in made:
            lines.append(f"{where}: a {'table' if target in tables else 'figure'} has this name; choose another")
        elif isinstance(target, str) and not target.isidentifier():
            lines.append(f"{where}: not a name for a target; use letters, digits and '_', beginning with a letter")
    return lines


def _name_problems(where: str, names: Any, made: list[Any]) -> list[str]:
    given = strings(names)
    known = ", ".join(printable(name) for name in made) or "none"
    lines = [
        f"{where}: {name!r} is not defined under tables or figures; defined: {known}"
        for name in given
        if name not in made
    ]
    return lines + [f"{where}: {name!r} is listed twice" for name in sorted({n for n in given if given.count(n) > 1})]
