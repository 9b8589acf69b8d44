"""Ratios of magnitudes against plain transformers, and the repairs of Prune&Comp and LinearPatch made of them."""

import json

import pytest
import torch
from given import cut_of

import replaceme
from replaceme.activations.capture import collect
from replaceme.activations.magnitudes import Magnitudes
from replaceme.activations.statistics import Statistics
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.fitting.fit_cut import fit_cut
from replaceme.fitting.passes import Passes
from replaceme.models.checkpoints import resolve
from replaceme.models.loading import load_causal_model
from replaceme.placements.upstream import factor_of
from replaceme.surgery.fold import merge
from replaceme.transforms.closed_form import fit_identity
from replaceme.transforms.magnitude import fit_hadamard_magnitude, fit_magnitude
from replaceme.transforms.scaling import hadamard
from replaceme.transforms.transform import Transform

GROUP = (2, 4)


def brute_ratios(brute_rows, folder, tokens, group, basis=None):
    """Sequence by sequence, without padding."""
    hidden, _, ends = brute_rows(folder, tokens)
    found = []
    for first, last in zip([-1, *ends.tolist()], ends.tolist(), strict=False):
        before, after = (hidden[block - 1][first + 1 : last + 1] for block in group)
        if basis is not None:
            before, after = before @ basis, after @ basis
        found.append(after.abs().mean(0) / before.abs().mean(0))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("basis", [None, hadamard(16)], ids=["channels", "hadamard"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_ratios_are_means_over_sequences(request, make_tokens, blocks_of, brute_rows, name, basis, side):
    folder, tokens = request.getfixturevalue(name), make_tokens(samples=9, side=side)
    model, family = blocks_of(folder, "float64")
    found = Magnitudes(GROUP, basis)
    collect(model, family, tokens.batches(4), [found])
    expected = brute_ratios(brute_rows, folder, tokens, GROUP, basis)
    assert torch.allclose(found.ratios(), expected, rtol=1e-6)
    assert expected.max() > 1.2 * expected.min()


def of_stream(m, r):
    statistics = Statistics.zeros(m.shape[1])
    statistics.add_batch(m, r)
    return statistics


def test_the_maps_are_those_of_the_papers():
    generator = torch.Generator().manual_seed(0)
    m, r = (torch.randn(50, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    ratios = torch.linspace(0.5, 3.0, 12, dtype=torch.float64)
    one = fit_magnitude(of_stream(m, r), ratios)
    assert torch.allclose(one.matrix, 1.75 * torch.eye(12, dtype=torch.float64)) and one.report["scale"] == 1.75
    assert one.report["residual"] == pytest.approx(float((1.75 * m - r).square().sum() / r.square().sum()))
    patch = fit_hadamard_magnitude(of_stream(m, r), ratios)
    basis = hadamard(12)
    assert torch.allclose(patch.matrix, patch.matrix.T)
    assert torch.allclose(m @ patch.matrix @ basis, (m @ basis) * ratios)
    assert (patch.report["smallest"], patch.report["largest"]) == (0.5, 3.0)


@pytest.mark.parametrize("ratios", [None, torch.tensor([1.0, float("nan")]), torch.tensor([1.0, -0.5])])
def test_ratios_that_are_none(ratios, refuses):
    with refuses("needs the ratios of magnitudes"):
        fit_magnitude(of_stream(torch.ones(3, 2), torch.ones(3, 2)), ratios)


@pytest.mark.parametrize("tied", [False, True])
def test_upstream_is_a_factor_on_the_stream(make_llama, tmp_path, tied):
    """The weights written against a hook that multiplies the state after the carrier; norms here have no epsilon."""
    folder = make_llama(rms_norm_eps=1e-14, tie_word_embeddings=tied)
    transform = Transform(1.6 * torch.eye(16, dtype=torch.float64), {"solver": "by hand"}, "upstream")
    merge(folder, cut_of([GROUP], 6), [transform], tmp_path / "out", {})
    ids = torch.randint(6, 66, (3, 17), generator=torch.Generator().manual_seed(5))
    model = load_causal_model(folder, "float32", "cpu")
    layers = model.model.layers
    layers[1].register_forward_hook(lambda m, i, output: output * 1.6)
    model.model.layers = torch.nn.ModuleList([layer for k, layer in enumerate(layers) if not 2 <= k < 4])
    expected = model(ids, use_cache=False).logits
    found = load_causal_model(tmp_path / "out", "float32", "cpu")(ids).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    layers[1]._forward_hooks.clear()
    assert float((model(ids, use_cache=False).logits - expected).abs().max() / expected.abs().max()) > 1e-2


def test_only_a_factor_goes_upstream(refuses):
    with refuses("no multiple of the identity"):
        factor_of(Transform(torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64)), {}, "upstream"))
    with refuses("no multiple of the identity"):
        factor_of(Transform(torch.zeros(2, 2, dtype=torch.float64), {}, "upstream"))


@pytest.mark.parametrize("estimation", ["parallel", "sequential"])
def test_factors_of_two_groups(make_llama, make_tokens, blocks_of, brute_rows, tmp_path, estimation):
    """In sequence the second is measured on the model that was merged with the first."""
    folder, tokens, groups = make_llama(rms_norm_eps=1e-14), make_tokens(samples=9), [(1, 2), (3, 5)]
    model, family = blocks_of(folder, "float64")
    fit = FitConfig(transform="magnitude", placement="upstream", estimation=estimation)
    passes = Passes(model, family, tokens, 4, "float32")
    found = fit_cut(fit, groups, resolve(str(folder)), None, lambda: passes, family)
    one = brute_ratios(brute_rows, folder, tokens, (1, 2)).mean()
    assert found[0].report["scale"] == pytest.approx(float(one), rel=1e-6)
    if estimation == "sequential":
        merge(folder, cut_of([(1, 2)], 6), found[:1], tmp_path / "out", {})
        folder, groups = tmp_path / "out", [(1, 2), (2, 4)]
    two = brute_ratios(brute_rows, folder, tokens, groups[1]).mean()
    assert found[1].report["scale"] == pytest.approx(float(two), rel=1e-5)


@pytest.mark.parametrize(
    "fit",
    [
        FitConfig(transform="magnitude", placement="upstream", estimation="sequential"),
        FitConfig(transform="hadamard_magnitude", placement="block"),
    ],
    ids=["prune-comp", "linear-patch"],
)
def test_prune(llama, texts, tmp_path, fit):
    calibration = CalibrationConfig(dataset=str(tmp_path / "text.txt"), samples=8, tokens=16)
    (tmp_path / "text.txt").write_text("\n".join(texts))
    cut = CutConfig(blocks=2, search="independent", metric="bi")
    record = replaceme.prune(llama, calibration, cut=cut, fit=fit, out=tmp_path / "out", verify=False)
    assert record["placement"] == fit.placement
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ("auto_map" in written) == (fit.placement == "block")
    if fit.placement == "upstream":
        assert "folded into all before the end of" in (tmp_path / "out" / "README.md").read_text()


def test_identity_takes_no_factor(llama, tmp_path):
    cut = cut_of([GROUP], 6)
    merge(llama, cut, [fit_identity(hidden_size=16)], tmp_path / "out", {})
    kept = load_causal_model(tmp_path / "out", "float32", "cpu").model.embed_tokens.weight
    assert torch.equal(kept, load_causal_model(llama, "float32", "cpu").model.embed_tokens.weight)
