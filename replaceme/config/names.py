"""Refuse names in the config that the workflow or a table needs itself."""

from collections.abc import Iterator, Mapping
from typing import Any

from replaceme.config.base import mapping
from replaceme.config.figures import COST_MEASURES, MEASURES
from replaceme.config.result_paths import OWN_FOLDERS
from replaceme.config.tables import BASELINE, HEALED, KEYS
from replaceme.config.targets import RULES
from replaceme.core.errors import printable
from replaceme.core.validation import LONGEST_NAME

# how tables and figures call rows and lines that no section names
LABELS = {BASELINE, "published", "unpruned"}
RESERVED = {
    "models": {*OWN_FOLDERS, *LABELS},
    "calibrations": {"dequantised", "parts", *LABELS},
    "cuts": {"candidates", HEALED, *LABELS},
    "fits": {"gram", "rows", *LABELS},
    "healings": LABELS,
    "tables": RULES,  # a table and a figure are targets by their names
    "figures": RULES,
}
COLUMNS = {*KEYS, *MEASURES, *COST_MEASURES}
ERRORS = ("_stderr", "_vs_identity")  # columns that stand by another
OF_FILES = ("models", "calibrations", "cuts", "fits", "healings", "evaluations", "tables", "figures")
# folders are named by the config, and beside them lie files that the workflow names
FILES = (".csv", ".html", ".json", ".jsonl", ".log", ".md", ".safetensors", ".svg", ".tex", ".tsv")
BESIDE = (".cost", ".published")  # what is made of a table lies beside it


def name_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return a line for each name that is taken, ends like a file of the workflow, or differs from another only in
    case.
    """
    lines: list[str] = []
    for section, entries in raw.items():
        if not isinstance(entries, dict):
            continue
        seen: dict[str, str] = {}
        for name in (one for one in entries if isinstance(one, str) and len(one) <= LONGEST_NAME):
            where = f"{printable(section)}.{printable(name)}"
            if name.casefold() in RESERVED.get(section, ()):
                lines.append(f"{where}: this name is reserved; choose another")
            elif section in OF_FILES and name.lower().endswith(FILES):
                lines.append(f"{where}: ends like a file of the workflow; choose another")
            elif section == "tables" and any(name.removesuffix(end) in entries for end in BESIDE if name.endswith(end)):
                lines.append(f"{where}: what the workflow makes of another table has this name; choose another")
            twin = seen.setdefault(name.casefold(), name)
            if section in OF_FILES and twin != name:
                lines.append(f"{where}: differs from {twin!r} only in case, which some disks ignore; rename one")
    return [*lines, *_columns(raw)]


def _columns(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each task whose column name in a table is taken."""
    for name, evaluation in mapping(raw, "evaluations").items():
        tasks = mapping(evaluation, "tasks")
        for task in (one for one in tasks if isinstance(one, str)):
            stands_by = any(task.endswith(end) and task.removesuffix(end) in {*tasks, *COLUMNS} for end in ERRORS)
            is_perplexity = task == "perplexity" == evaluation.get("perplexity")
            if (task in COLUMNS and not is_perplexity) or stands_by:
                yield (
                    f"evaluations.{printable(name)}.tasks.{printable(task)}: a column of every table has this name; "
                    "give the task another in a YAML of your own (`include`)"
                )
