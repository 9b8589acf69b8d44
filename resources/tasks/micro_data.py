"""The paths of the tasks' data by name, for their YAML files: `!function micro_data.sums`."""

from pathlib import Path


def __getattr__(name: str) -> str:
    path = Path(__file__).resolve().parent / "micro" / f"{name}.jsonl"
    if not path.is_file():
        raise AttributeError(name)
    return str(path)
