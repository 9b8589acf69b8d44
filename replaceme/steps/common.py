"""Common arguments of the steps, and loading of their inputs."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.calibrations import ModelConfig
from replaceme.config.command_line import add_options, option_of
from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.files import RECORD, Check, check_files, load_metadata, read_json
from replaceme.core.origin import Origin
from replaceme.models.checkpoints import check_merged, is_record, load_record, locate, open_checkpoint, read_config
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.config.placement import Regression

MOST_THREADS = 1024
MODEL_HELP = "a folder, a Hub id, or the model.json of the `model` step"


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional MODEL."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def new_file(text: str) -> Path:
    """Return the path of a file to write; raises ArgumentTypeError for a folder, which it would take the place of."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the path of a file")
    return Path(text)


def new_folder(text: str) -> Path:
    """Return the path of a folder to write; raises ArgumentTypeError for a file, which is found out at the end else."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; give the path of a folder")
    return path


def out_argument(parser: argparse.ArgumentParser, what: str, kind: Callable[[str], Path] = new_file) -> None:
    """Add the required --out, of a `kind`: a file, a folder (`new_folder`), or a path without its ending (`Path`)."""
    parser.add_argument("--out", required=True, type=kind, metavar="PATH", help=what)


def compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of where to compute: --device, --gpus and --threads."""
    group = parser.add_argument_group("where to compute")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="Default: the GPU if any.")
    add_options(parser, ModelConfig, ("gpus",), group)
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch. Default: torch's own choice.")


def verify_argument(parser: argparse.ArgumentParser, against: str) -> None:
    """Add --verify and --no-verify to a step that writes a checkpoint."""
    text = f"Do not load the result in a fresh process to compare it with {against}."
    parser.add_argument("--no-verify", dest="verify", action="store_false", help=text)
    parser.add_argument("--verify", action="store_true", default=True, help=argparse.SUPPRESS)


def gpus_of(args: argparse.Namespace) -> int:
    """Return the --gpus of `compute_arguments`."""
    return option_of(args, ModelConfig, "gpus")


def set_threads(threads: int | None) -> None:
    """Limit torch's threads; the same number gives the same bits on the same machine."""
    import torch

    if threads is not None:
        if threads < 1:
            raise ReplaceMeError(f"options: --threads {threads}: must be at least 1")
        if threads > MOST_THREADS:
            raise ReplaceMeError(f"options: --threads: must be at most {MOST_THREADS}")
        torch.set_num_threads(threads)


def same_model(record: ModelRecord, model_sha256: str | None, path: str | Path) -> None:
    """Raise ReplaceMeError when a file says that it was made from another model."""
    if model_sha256 not in (None, record.sha256):
        raise ReplaceMeError(f"{path}: made from another model than {record.source}; make it again")


def read_record(path: str | Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file of an earlier step; raises ReplaceMeError when it lacks one of `keys`."""
    record = read_json(path)
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise ReplaceMeError(f"{path}: no {missing[0]!r} in it; is it the output of another step?")
    return record


def costs_argument(parser: argparse.ArgumentParser) -> None:
    """Add --costs, which short help leaves out."""
    text = "costs of the model's parts in the unit of --of, made by `replaceme parts`"
    parser.add_argument("--costs", metavar="FILE", help=text).rare = True


def check_shards(paths: list[str]) -> tuple[list[str], Origin]:
    """Return the paths of all shards of one cut, in order, and their common origin; raises ReplaceMeError otherwise."""
    origins = {path: Origin.of(load_metadata(path)) for path in paths}
    first = replace(origins[paths[0]], shard=None)
    for path, origin in origins.items():
        if replace(origin, shard=None) != first or origin.shard is None:
            raise ReplaceMeError(f"{path}: of another model, calibration, cut or number of shards than {paths[0]}")
    numbers = sorted(origins[path].shard for path in paths)
    if numbers != list(range(first.shards)):
        raise ReplaceMeError(f"shards {numbers} given, 0 .. {first.shards - 1} needed, once each")
    return sorted(origins, key=lambda path: origins[path].shard), first


def summed_origin(path: str) -> Origin:
    """Return the origin of statistics of a whole text; raises ReplaceMeError for one of several shards."""
    origin = Origin.of(load_metadata(path))
    if origin.shard is not None and origin.shards > 1:
        raise ReplaceMeError(f"{path}: one of {origin.shards} shards; add them with `replaceme sum`")
    return replace(origin, shard=None)


def neurons(path: str | None, regression: "Regression", origin: Origin) -> "list[Recycled] | None":
    """Load the recycled neurons of each group for a regression with such, made from the same model, text and cut."""
    from replaceme.activations.recycled_neurons import load_recycled

    if regression.recycle is None:
        return None
    if path is None:
        raise ReplaceMeError("options: recycled neurons are needed: --recycled, made by `replaceme recycle`")
    found, metadata = load_recycled(path)
    if not origin.is_shared_by(Origin.of(metadata)):
        raise ReplaceMeError(f"{path}: of another model, calibration or cut; make it again")
    return found


def model_record(args: argparse.Namespace) -> ModelRecord:
    """Load the record of the positional MODEL."""
    return load_record(args.model)


def weights_folder(model: str, check: Check = check_files) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model to measure and its config, after a check of its files against its record.

    `check` is that of a model made here. A folder or Hub id without a record is opened, and not hashed.
    """
    folder = Path(model)
    if (folder / RECORD).is_file():
        check_merged(folder, check)
    elif is_record(model):
        record = ModelRecord.load(folder)
        folder = Path(record.folder)
        _check_source(folder, record.files, model)
    else:
        folder, _ = locate(model, None)
        open_checkpoint(folder)
    return folder, read_config(folder)


def _check_source(folder: Path, files: dict[str, str], path: str) -> None:
    try:
        check_files(folder, files)
    except DamagedError as error:
        raise ReplaceMeError(
            f"{error.found} in {path}; copy the model again, or delete {path} to take it as it is"
        ) from None
