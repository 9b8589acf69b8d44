"""Arguments and loading that several steps share."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.checkpoints import identity, load_record, read_config
from replaceme.config import CalibrationConfig
from replaceme.data import Tokens, load_tokens
from replaceme.errors import ReplaceMeError
from replaceme.fold import check_merged
from replaceme.loading import load_base_model
from replaceme.models import Family, family_of, pick_device, pick_dtype
from replaceme.options import add_options

if TYPE_CHECKING:
    from torch import nn

MODEL_HELP = "model: a folder, a Hub id, or the model.json of the `model` step"


def model_argument(parser: argparse.ArgumentParser) -> None:
    """The positional MODEL."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def out_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """The required --out."""
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help=what)


def compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to compute: --device and --threads."""
    group = parser.add_argument_group("where to compute")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="Default: the GPU if any.")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch. Default: torch's own choice.")


def forward_arguments(parser: argparse.ArgumentParser, *more: str) -> None:
    """MODEL, TOKENS, the options of a forward pass (and `more` of the calibration's), and where to compute."""
    model_argument(parser)
    parser.add_argument("tokens_file", metavar="TOKENS", help="token file of the `tokens` step")
    add_options(parser, CalibrationConfig, ("batch_size", "dtype", *more))
    compute_arguments(parser)


@dataclass(frozen=True)
class Forward:
    """What a forward pass over calibration tokens needs; `origin` holds the hashes of model and tokens."""

    record: dict[str, Any]
    tokens: Tokens
    origin: dict[str, Any]
    model: "nn.Module"
    family: Family
    batch_size: int


def load_forward(args: argparse.Namespace, record: dict[str, Any]) -> Forward:
    """Load what `forward_arguments` names, the model by its record."""
    tokens, metadata = load_tokens(args.tokens_file)
    set_threads(args.threads)
    config = read_config(record["folder"])
    device = pick_device(args.device)
    dtype = pick_dtype(getattr(args, "dtype", "auto"), device, config)
    model = load_base_model(record["folder"], dtype, device)
    batch_size = getattr(args, "batch_size", CalibrationConfig.model_fields["batch_size"].default)
    origin = {"model_sha256": identity(record), "tokens_sha256": metadata["sha256"]}
    return Forward(record, tokens, origin, model, family_of(config, record["folder"]), batch_size)


def set_threads(threads: int | None) -> None:
    """Limit torch's threads; the same number gives the same bits on the same machine."""
    import torch

    if threads is not None:
        if threads < 1:
            raise ReplaceMeError(f"options: --threads {threads}: must be at least 1")
        torch.set_num_threads(threads)


def same_model(record: dict[str, Any], metadata: dict[str, Any], path: str | Path) -> None:
    """Raise ReplaceMeError when a file was made from another model."""
    if metadata.get("model_sha256") not in (None, identity(record)):
        raise ReplaceMeError(f"{path}: made from another model than {record['source']}; make it again")


def load_model(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the positional MODEL."""
    return load_record(args.model)


def weights_folder(model: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a model to measure and its config; a merged model is checked against its own list of files."""
    folder = Path(model)
    if not (folder / "replaceme.json").is_file():
        folder = Path(load_record(model)["folder"])
    else:
        check_merged(folder)
    return folder, read_config(folder)
