"""Common arguments of the steps that start from fitted transforms, apart from `common`, which all steps use."""

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
    """Add the positional MODEL, CUT and TRANSFORM, the sources of a merged checkpoint."""
    model_argument(parser)
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")
    parser.add_argument("transform", metavar="TRANSFORM", help="transform.safetensors of the `fit` step")


def load_fitted(
    args: argparse.Namespace,
) -> tuple[ModelRecord, Cut, list[Transform] | Found, Origin]:
    """Load (model record, cut, transform of each group, their origin) of `fitted_arguments`, made from one another.

    For another method's file it loads the method's result instead of transforms.
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
