"""Blocks merged into their carrier: the weights by hand, what stays, what is refused."""

import pytest
import tiny_families
import torch
from given import cut_of
from transformers import AutoModelForCausalLM

import replaceme
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.placements.collapse import merged
from replaceme.surgery.fold import merge
from replaceme.transforms.collapse import fit_collapse

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).state_dict()


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_differences_are_added_and_norms_stay(request, texts, tmp_path, name):
    folder = request.getfixturevalue(name)
    fit, cut = FitConfig(transform="collapse"), CutConfig(blocks=3, start=2)
    record = replaceme.prune(folder, texts=texts, cut=cut, fit=fit, out=tmp_path / "out", verify=False)
    assert record["placement"] == "collapse"
    assert "their weights were merged into those of block 1" in (tmp_path / "out" / "README.md").read_text()
    before, after = weights(folder), weights(tmp_path / "out")
    for tensor in after:
        parts = tensor.split(".")
        block = int(parts[2]) if parts[1] == "layers" else None
        source = ".".join([*parts[:2], str(block + 3), *parts[3:]]) if block is not None and block > 1 else tensor
        expected = before[source]
        if block == 1 and parts[-2] in LINEAR:
            others = [before[tensor.replace("layers.1.", f"layers.{k}.")] for k in (2, 3, 4)]
            expected = expected + sum(other - expected for other in others)
        assert torch.allclose(after[tensor], expected, rtol=1e-6, atol=1e-7), tensor


def test_one_block_takes_the_carriers_place():
    """W_c + (W_k - W_c) is W_k, and no removed block leaves W_c."""
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    assert torch.equal(merged(one, [two]), two) and torch.equal(merged(one, []), one)
    assert torch.equal(merged(one, [two, two]), 2 * two - one)


def test_blocks_of_two_kinds_are_refused(tmp_path, refuses):
    """Block 1 of this mixture is dense, block 2 has experts."""
    cut = cut_of([(2, 3)], 6)
    with refuses("blocks 1 .. 2 are not of one kind"):
        merge(tiny_families.source("deepseek_v3"), cut, [fit_collapse(16)], tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_nothing_is_fitted():
    fit = FitConfig(transform="collapse")
    assert fit.unfitted and not fit.sequential(several=True)
    with pytest.raises(ValueError, match="transform collapse takes no placement"):
        FitConfig(transform="collapse", placement="block")
    with pytest.raises(ValueError, match="transform collapse takes no ridge"):
        FitConfig(transform="collapse", ridge=1.0)
