"""Each placement's rows and targets against plain transformers, and the least squares that follows from them."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from replaceme.activations.gather import gather_groups
from replaceme.activations.targets import weights_of
from replaceme.config.placement import Regression
from replaceme.transforms.closed_form import fit_least_squares

GROUP = (2, 5)


@pytest.fixture(scope="session")
def down_inputs():
    """A function that gives the inputs of a block's down projection [tokens, intermediate], float64."""

    @cache
    def capture(folder, tokens, block):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        seen = []
        model.model.layers[block].mlp.down_proj.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0][0]))
        with torch.no_grad():
            for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
                model(ids[mask][None])
        return torch.cat(seen)

    return capture


@pytest.fixture(scope="module")
def tokens(make_tokens):
    return make_tokens(samples=60)


@pytest.mark.parametrize("weighting", ["uniform", "inverse_energy"])
@pytest.mark.parametrize("placement", ["mlp", "down_proj", "block"])
@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_least_squares_of_every_placement_is_lstsq(
    request, source, placement, weighting, tokens, blocks_of, brute_rows, down_inputs
):
    folder = request.getfixturevalue(source)
    hidden, outputs, _ = brute_rows(folder, tokens)
    start, end = GROUP
    target = hidden[end - 1] - hidden[start - 1] + outputs[start - 1]
    m = {"mlp": outputs[start - 1], "block": hidden[start - 1]}.get(placement)
    m = down_inputs(folder, tokens, start - 1) if m is None else m
    r = hidden[end - 1] if placement == "block" else target
    scale = 1 / r.norm(dim=1, keepdim=True) if weighting == "inverse_energy" else torch.ones(len(r), 1).double()
    best = torch.linalg.lstsq(m * scale, r * scale).solution
    regression = Regression(placement, weighting)
    model, family = blocks_of(folder, "float64")
    statistics = gather_groups(model, family, tokens.batches(7), [GROUP], regression)[0]
    found = fit_least_squares(statistics)
    missed = float(((m @ best - r) * scale).square().sum() / (r * scale).square().sum())
    assert 1e-3 < missed < 1 and found.report["residual"] == pytest.approx(missed, rel=1e-6)
    explicit = float(((m @ found.matrix - r) * scale).square().sum() / (r * scale).square().sum())
    assert explicit == pytest.approx(missed, rel=1e-6)
    assert regression.kind == placement + ("" if weighting == "uniform" else "-inverse_energy")


def test_rows_without_a_target_have_no_weight():
    terms = (torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]),)
    assert weights_of(Regression(weighting="inverse_energy"), terms).tolist() == [[0.0, pytest.approx(1 / 25)]]
