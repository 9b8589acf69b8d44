"""Every path under results/, in one place: patterns whose names in braces are Snakemake's wildcards.

A row of a table is a folder: `results/model/calibration/cut/fit`, the same with `healed/healing`, or
`results/model/baseline`; what is measured of it lies below (EVALUATION ... EXPORT). Each job has a log and a benchmark
under `results/logs` and `results/benchmarks`, at the path of its output.
"""

from pathlib import PurePath

from replaceme.config.tables import BASELINE, HEALED, Row

RESULTS = "results"
OWN_FOLDERS = ("benchmarks", "cost", "figures", "logs", "records", "tables")  # beside those of the models

OF_MODEL = f"{RESULTS}/{{model}}"
OF_BASELINE = f"{OF_MODEL}/{BASELINE}"
OF_TEXT = f"{OF_MODEL}/{{calibration}}"
OF_CUT = f"{OF_TEXT}/{{cut}}"
OF_SUMS = f"{OF_CUT}/gram/{{kind}}"
OF_FIT = f"{OF_CUT}/{{fit}}"
OF_HEALING = f"{OF_FIT}/{HEALED}/{{healing}}"

MODEL = f"{OF_MODEL}/model.json"
# the plain weights of a quantised model: the files that jobs name
PLAIN = {"config": f"{OF_MODEL}/dequantised/config.json", "record": f"{OF_MODEL}/dequantised/replaceme.json"}
ANSWERS = f"{OF_TEXT}/generated.jsonl"
COSTS = f"{OF_MODEL}/parts/{{unit}}.json"  # of the model's parts
TOKENS = f"{OF_TEXT}/tokens.safetensors"
MOST = f"{OF_TEXT}/most.safetensors"  # tokens from which `samples: auto` takes those that are enough
ENOUGH = f"{OF_TEXT}/enough.json"
ENOUGH_FIGURE = f"{OF_TEXT}/enough.svg"
DISTANCES = f"{OF_TEXT}/distances.safetensors"
DISTANCES_CSV = f"{OF_TEXT}/distances.csv"
DISTANCES_FIGURE = f"{OF_TEXT}/distances.svg"
CANDIDATES = f"{OF_TEXT}/candidates/{{candidates}}.json"
CUT = f"{OF_CUT}/cut.json"
CUT_FIGURE = f"{OF_CUT}/cut.svg"
SHARD = f"{OF_SUMS}/{{shard}}-of-{{shards}}.safetensors"
SUM = f"{OF_SUMS}/sum-of-{{shards}}.safetensors"
RECYCLED = f"{OF_SUMS}/recycled-of-{{shards}}.safetensors"
ROWS = f"{OF_CUT}/rows/{{kind}}/{{fit_tokens}}{{exact}}"
TRANSFORM = f"{OF_FIT}/transform.safetensors"
FIT = f"{OF_FIT}/fit.json"
VERIFY = f"{OF_FIT}/verify.json"
HEALING = f"{OF_HEALING}/healing.json"
HEALING_FIGURE = f"{OF_HEALING}/healing.svg"

# in the folder of a row
EVALUATION = "evaluation/{evaluation}.json"
DIVERGENCE = "divergence/{evaluation}.json"  # not of baselines
SPEED = "speed.json"
EXPORT = "exports/{program}.json"  # not of baselines
# the files of a checkpoint that jobs name, in the folder of a fit or of a healing
CHECKPOINT = {"config": "model/config.json", "card": "model/README.md", "record": "model/replaceme.json"}

TABLE = f"{RESULTS}/tables/{{table}}"  # without an ending
TABLE_FIGURE = f"{RESULTS}/tables/figures/{{table}}"  # of its log; the figure lies beside the table
COMPARED = f"{TABLE}.published"
COST = f"{TABLE}.cost"
COST_JOBS = f"{RESULTS}/cost/tables/{{table}}.json"
FIGURE = f"{RESULTS}/figures/{{figure}}"
PROVENANCE = f"{RESULTS}/provenance"


class Names(dict):
    """Names of a job by wildcard, as attributes too: `names.model`; Snakemake's own wildcards serve as well."""

    __getattr__ = dict.__getitem__


def at(pattern: str, names: Names | Row, **changed: object) -> str:
    """Return the path of a pattern for the names of a job or of a row, some of them given or changed by keywords."""
    given = names._asdict() if isinstance(names, Row) else dict(names.items())
    return pattern.format(**{**given, **changed})


def fit_folder(row: Row) -> str:
    """Return the folder of the fit of a row, healed or not."""
    return at(OF_FIT, row)


def row_folder(row: Row) -> str:
    """Return the folder of a row: that of its healing, or of its fit."""
    return at(OF_HEALING if row.healing else OF_FIT, row)


def row_of(folder: str | PurePath) -> Row | None:
    """Return the names of a row from its folder, the inverse of `row_folder`; None for another folder."""
    parts = PurePath(folder).parts
    healed = len(parts) > 1 and parts[-2] == HEALED
    names = parts[:-2] if healed else parts
    return Row(*names[-4:], parts[-1] if healed else None) if len(names) >= 4 else None


def checkpoint_files(folder: str) -> dict[str, str]:
    """Return the patterns of a checkpoint's files that jobs name: config, card, record."""
    return {name: f"{folder}/{file}" for name, file in CHECKPOINT.items()}


def model_at(record: str) -> str:
    """Return the path that a step reads a model from: the folder of a checkpoint's record, or a model.json itself."""
    return str(PurePath(record).parent) if PurePath(record).name == PurePath(CHECKPOINT["record"]).name else record


def log_of(output: str, name: str | None = None) -> str:
    """Return the pattern of the log of the job that writes `output`; `name` in place of the output's own."""
    return _beside(output, "logs", name, ".log")


def benchmark_of(output: str, name: str | None = None) -> str:
    """Return the pattern of the benchmark of the job that writes `output`; `name` in place of the output's own."""
    return _beside(output, "benchmarks", name, ".tsv")


def _beside(output: str, folder: str, name: str | None, ending: str) -> str:
    inside = PurePath(output).relative_to(RESULTS)
    own = inside.name
    for known in (".json", ".jsonl", ".safetensors", ".svg", ".csv", ".html"):
        own = own.removesuffix(known)
    return str(PurePath(RESULTS, folder, inside.with_name(f"{name or own}{ending}")))
