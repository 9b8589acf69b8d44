"""SVD-LLM: the truncation is the paper's and the best there is, and the layers of the checkpoint are its factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replaceme.methods.svd_llm import input_grams, linear_layers, product, rank_of, truncated
from replaceme.methods.walk import Walk
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.loading import load_base_model


def rows(seed, count, width):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(out=st.integers(2, 12), width=st.integers(2, 12), share=st.floats(0.1, 0.9), seed=st.integers(0, 100))
def test_the_truncation_is_the_papers(out, width, share, seed):
    weight, inputs = rows(seed, out, width), rows(seed + 1, 40, width)
    gram, rank = inputs.T @ inputs, rank_of(torch.Size([out, width]), share)
    factor, lost = truncated(weight, gram, rank)
    ours = product(factor, weight)
    root = torch.linalg.cholesky(gram)
    left, values, right = torch.linalg.svd(weight @ root, full_matrices=False)
    papers = (
        left[:, :rank]
        @ torch.diag(values[:rank])
        @ torch.linalg.solve_triangular(root, right[:rank], upper=False, left=False)
    )
    assert (ours - papers).norm() <= 1e-8 * weight.norm()
    error = (inputs @ (weight - ours).T).square().sum()
    cut_off = values[rank:].square().sum()
    assert float(error) == pytest.approx(float(cut_off), rel=1e-6, abs=1e-9 * float(values.square().sum()))
    assert lost == pytest.approx(float(cut_off / values.square().sum()), abs=1e-9)


@pytest.mark.parametrize(("out", "width"), [(6, 9), (9, 6)])
def test_inputs_of_low_rank_are_reproduced_exactly(out, width):
    """The Gram is singular, and no factor of it can be inverted."""
    weight, inputs = rows(1, out, width), rows(2, 50, 3) @ rows(3, 3, width)
    factor, lost = truncated(weight, inputs.T @ inputs, 4)
    assert (factor.T @ factor - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-12
    assert (inputs @ (weight - product(factor, weight)).T).norm() < 1e-6 * (inputs @ weight.T).norm() and lost < 1e-12


@pytest.mark.parametrize(("shape", "share"), [((16, 16), 0.5), ((24, 16), 0.75), ((3, 50), 0.01)])
def test_the_rank_is_the_largest_that_fits(shape, share):
    rank, size = rank_of(torch.Size(shape), share), share * shape[0] * shape[1]
    assert rank >= 1 and (rank * sum(shape) <= size or rank == 1) and (rank + 1) * sum(shape) > size


def test_grams_are_of_the_unmasked_inputs_of_every_layer(llama, make_tokens, make_passes):
    tokens = make_tokens(samples=6, longest=12)
    walk, found = Walk(make_passes(llama, tokens)), []
    for block in walk.blocks:
        found.append(input_grams(walk, linear_layers(block), advance=True))
    model, seen = load_base_model(llama, "float64", "cpu"), {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda m, args, name=name: seen.setdefault(name, []).append(args[0][0]))
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        model(ids[mask][None])
    assert len(layers) == sum(map(len, found)) == 6 * 7
    for name, parts in seen.items():
        _, block, layer = name.split(".", 2)
        inputs = torch.cat(parts)
        assert torch.allclose(found[int(block)][layer], inputs.T @ inputs, rtol=1e-4, atol=1e-4)


def test_sequential_takes_the_inputs_from_the_model_as_factored_so_far(llama, make_tokens, fitted, make_passes):
    tokens = make_tokens(samples=8)
    _, parallel = fitted(llama, tokens, "svd_llm")
    _, found = fitted(llama, tokens, "svd_llm", estimation="sequential")
    assert all(torch.equal(found.tensors[name], one) for name, one in parallel.tensors.items() if name[0] == "0")
    passes = make_passes(llama, tokens)
    for name, layer in linear_layers(passes.model.layers[0]).items():
        layer.weight.copy_(product(found.tensors[f"0.{name}"], layer.weight))
    walk = Walk(passes)
    input_grams(walk, linear_layers(walk.block), advance=True)
    inputs = input_grams(walk, linear_layers(walk.block), advance=True)
    for name, layer in linear_layers(passes.model.layers[1]).items():
        factor = found.tensors[f"1.{name}"]
        expected, _ = truncated(layer.weight, inputs[name], factor.shape[1])
        assert (product(factor, layer.weight) - product(expected, layer.weight)).norm() < 1e-4 * layer.weight.norm()
        assert not torch.allclose(product(parallel.tensors[f"1.{name}"], layer.weight), product(factor, layer.weight))


def test_together_the_layers_are_as_small_as_without_the_blocks(llama, make_tokens, fitted):
    record, found = fitted(llama, make_tokens(samples=8), "svd_llm")
    checkpoint = open_checkpoint(llama)
    shapes = {name: checkpoint.tensors[f"model.layers.{name}.weight"][1] for name in found.tensors}
    before = sum(out * width for out, width in shapes.values())
    after = sum(one.shape[1] * sum(shapes[name]) for name, one in found.tensors.items())
    target = sum(record.block_parameters[2:4])
    assert target <= before - after <= target + sum(map(sum, shapes.values()))
