"""The placements as the config and the files of transforms know them."""

from typing import get_args

import pytest
import torch

from replaceme.config.fits import FitConfig
from replaceme.config.placement import OFFERED, Regression
from replaceme.placements.registry import PLACEMENTS, REGRESSED
from replaceme.transforms.transform import Transform


def test_a_config_can_name_those_that_are_described():
    assert get_args(FitConfig.model_fields["placement"].annotation) == tuple(OFFERED)
    assert [name for name in REGRESSED if name not in OFFERED] == ["collapse", "inputs"]


@pytest.mark.parametrize("name", OFFERED)
def test_each_is_fitted_on_rows_that_are_as_wide_as_its_map(name):
    place = Regression(PLACEMENTS[name].fitted_as).place
    assert (place.width(16, 24) == 16) == PLACEMENTS[name].square


def test_a_file_of_a_placement_that_is_none(tmp_path, refuses):
    for name in ("elsewhere", "inputs"):
        Transform(torch.eye(4, dtype=torch.float64), {"solver": "by hand"}, name).save(tmp_path / "t.safetensors")
        with refuses(f"t.safetensors: placed on '{name}', which is none of mlp, down_proj, block"):
            Transform.load(tmp_path / "t.safetensors")
