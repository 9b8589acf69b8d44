"""From a config to tables by the workflow, for tiny random models of the kinds that people have: hybrids, mixtures of
experts, language models inside larger ones, a model that is calibrated on prompts with pictures.

    python tests/families_to_tables.py FOLDER [--types TYPE ...]

writes the models, a config and the results to a new FOLDER, and prints a line for each shortened model of the tables.
It takes 68 jobs, 14 minutes on 2 busy cores. Exit code 1 where a job fails or a table lacks a number.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probe_all
import yaml
from tiny_pictured import gemma3, with_marks
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

from replaceme.calibration.images import generated
from replaceme.probing.describe import tiny_of
from replaceme.probing.model import build

ROOT = Path(__file__).resolve().parents[1]
MICRO = ROOT / "resources/micro"
VOCABULARY, POSITIONS = 960, 512  # the tasks of the embedded world need no more
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
UNUSED = 944  # first of the numbers that no token of text has: marks of pictures and sounds
CONFIG = "families.yaml"
TYPES = ("qwen3_5", "gpt_oss", "nemotron_h", "glm4_moe", "llama4", "deepseek_v4", "gemma3")
PICTURED = ("gemma3",)
SECTIONS = {
    "device": "cpu",
    "calibrations": {
        "text": {"dataset": "micro", "samples": 16, "tokens": 64, "seed": 1},
        "pictured": {
            "dataset": "rows.jsonl",
            "conversations": "chat",
            "pictures": "shown",
            "samples": 12,
            "tokens": 48,
        },
    },
    "cuts": {"n2": {"blocks": 2}},
    "fits": {"ls": {"objective": "l2"}},
    "evaluations": {
        "few": {
            "include": str(ROOT / "resources/tasks"),
            "tasks": {"micro_kinds": {}, "micro_lastword": {"in_average": False}},
            "perplexity": "micro_lastword",
            "limit": 8,
        }
    },
}


def write_of_text(folder: Path, model_type: str) -> None:
    """Write a small model of a type, as the probe makes it, with a tokenizer of bytes, as many types demand."""
    whole = AutoConfig.for_model(model_type, **probe_all.OWN.get(model_type, {})).to_dict()
    build(_for_tokenizer(tiny_of({**whole, "model_type": model_type}, model_type))).save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    text = (MICRO / "README.md").read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(text, vocab_size=UNUSED, special_tokens=SPECIAL, show_progress=False)
    named = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **named).save_pretrained(folder)


def _for_tokenizer(config: Any, name: str = "") -> Any:
    """Return a config with the sizes and the numbers of tokens of the tokenizer."""
    if isinstance(config, dict):
        return {key: _for_tokenizer(value, str(key)) for key, value in config.items()}
    if type(config) is not int:
        return config
    known = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "bos_token_id": 2, "eos_token_id": 3}
    is_mark = name.endswith(("_token_id", "_token_index")) and config > known["eos_token_id"]
    return UNUSED + config % (VOCABULARY - UNUSED) if is_mark else known.get(name, config)


def write_pictured(folder: Path, model_type: str) -> None:
    """Write a small model of text and pictures with its processor."""
    tokenizer = with_marks(Tokenizer.from_file(str(MICRO / "tokenizer.json")))
    for one in {"gemma3": gemma3}[model_type](tokenizer):
        one.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """Write a data set of questions about pictures, in sentences of the embedded world."""
    rows = []
    for number in range(16):
        generated(3, number).resize((32, 24)).save(folder / f"{number}.png")
        asked, answer = f"<image> where is Ann ? {number}", "Ann is in the garden . " * (1 + number % 3)
        chat = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        rows.append({"chat": chat, "shown": f"{number}.png"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write(folder: Path, types: list[str]) -> None:
    """Write the models, the data set and the config: a table of models calibrated on text, one on pictures."""
    for model_type in types:
        make: Callable[[Path, str], None] = write_pictured if model_type in PICTURED else write_of_text
        make(folder / model_type, model_type)
    write_rows(folder)
    tables = {}
    for calibration in ("text", "pictured"):
        models = [one for one in types if (one in PICTURED) is (calibration == "pictured")]
        if models:
            given = {"models": models, "calibrations": [calibration], "cuts": ["n2"], "fits": ["ls"]}
            tables[f"families-{calibration}"] = {**given, "evaluation": "few", "speed": False}
    used = {name: one for name, one in SECTIONS["calibrations"].items() if f"families-{name}" in tables}
    models = {model_type: {"source": model_type} for model_type in types}
    config = {**SECTIONS, "calibrations": used, "models": models, "tables": tables}
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


def lines(folder: Path) -> list[str]:
    """Return a line for each shortened model of the tables; raises SystemExit for a number that is missing."""
    found = []
    for path in sorted((folder / "results/tables").glob("families-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["cut"]]
        for row in rows:
            numbers = {name: float(row[name] or "nan") for name in ("compression", "average", "perplexity")}
            if not all(map(math.isfinite, numbers.values())):
                raise SystemExit(f"{path}: {row['model']} {row['fit']}: {numbers}")
            said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            found.append(f"{row['model']} on {row['calibration']}, {row['removed']} removed, {row['fit']}: {said}")
    return found


def main() -> None:
    """Write everything, run the workflow, print what is in its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    write(given.folder, given.types)
    wanted = [f"results/tables/{name}.csv" for name in yaml.safe_load((given.folder / CONFIG).read_text())["tables"]]
    command = ["snakemake", *wanted, "--cores", "all", "--quiet", "rules", "--keep-going"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", CONFIG]
    done = subprocess.run(command, cwd=given.folder, check=False)
    print(*lines(given.folder), sep="\n")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
