"""What the steps share that start from what was fitted; apart from `common`, on which all steps hang."""

import argparse

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.methods.found import Found, is_found
from replaceme.models.model_record import ModelRecord
from replaceme.steps.common import model_argument, model_record, same_model
from replaceme.surgery.fold import check_values
from replaceme.transforms.transform import Transform


def fitted_arguments(parser: argparse.ArgumentParser) -> None:
    """The positional MODEL, CUT and TRANSFORM: what a merged checkpoint is made from."""
    model_argument(parser)
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")
    parser.add_argument("transform", metavar="TRANSFORM", help="transform.safetensors of the `fit` step")


def load_fitted(
    args: argparse.Namespace,
) -> tuple[ModelRecord, Cut, list[Transform] | Found, Origin]:
    """(model record, cut, transform of each group, their origin) of `fitted_arguments`, made from one another.

    In place of transforms what another method found, where that made the file.
    """
    record = model_record(args)
    cut = Cut.load(args.cut)
    same_model(record, cut.model_sha256, args.cut)
    load = Found.load if is_found(args.transform) else Transform.load_all
    transforms, metadata = load(args.transform)
    origin = Origin.of(metadata)
    same_model(record, origin.model_sha256, args.transform)
    if origin.groups not in (None, cut.groups):
        raise ReplaceMeError(f"{args.transform}: fitted for another cut than {args.cut}; fit it again")
    for one in [] if isinstance(transforms, Found) else transforms:
        check_values(one, record.hidden_size, args.transform)
    return record, cut, transforms, origin
