"""Names in the config that cannot be those of folders and files of the workflow."""

from collections.abc import Mapping
from typing import Any

from replaceme.errors import printable
from replaceme.validation import LONGEST_NAME

RESERVED = {
    "models": {"benchmarks", "cost", "figures", "logs", "published", "records", "tables"},
    "calibrations": {"baseline"},
    "cuts": {"candidates"},
    "fits": {"gram", "rows"},
}
OF_FILES = ("models", "calibrations", "cuts", "fits", "healings", "evaluations", "tables", "figures")
# folders are named by the config, and beside them lie files that the workflow names
FILES = (".csv", ".html", ".json", ".jsonl", ".log", ".md", ".safetensors", ".svg", ".tex", ".tsv")
BESIDE = (".cost", ".published")  # what is made of a table lies beside it


def name_problems(raw: Mapping[str, Any]) -> list[str]:
    """A line for each name that is taken, ends like a file of the workflow, or differs from another in case alone."""
    lines: list[str] = []
    for section, entries in raw.items():
        if not isinstance(entries, dict):
            continue
        seen: dict[str, str] = {}
        for name in (one for one in entries if isinstance(one, str) and len(one) <= LONGEST_NAME):
            where = f"{printable(section)}.{printable(name)}"
            if name in RESERVED.get(section, ()):
                lines.append(f"{where}: this name is reserved; choose another")
            elif section in OF_FILES and name.lower().endswith(FILES):
                lines.append(f"{where}: ends like a file of the workflow; choose another")
            elif section == "tables" and any(name.removesuffix(end) in entries for end in BESIDE if name.endswith(end)):
                lines.append(f"{where}: what the workflow makes of another table has this name; choose another")
            twin = seen.setdefault(name.casefold(), name)
            if section in OF_FILES and twin != name:
                lines.append(f"{where}: differs from {twin!r} only in case, which some disks ignore; rename one")
    return lines
