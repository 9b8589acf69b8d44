"""A ridge that pulls a new down projection to the old one: against rows and their normal equations in float64."""

import family_checks
import pytest
import tiny_families
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import replaceme
from replaceme.activations.capture import capture
from replaceme.activations.targets import wanted_by
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.placement import Regression
from replaceme.fitting.fit_cut import fit_cut
from replaceme.fitting.passes import Passes
from replaceme.models.checkpoints import open_checkpoint, resolve
from replaceme.placements.registry import PLACEMENTS
from replaceme.surgery.shortened_model import shortened

DOWN, PLACE = Regression("down_proj"), PLACEMENTS["down_proj"]
HUGE = 1e30
GROUPS = [(1, 3), (4, 6)]
NORM = "model.layers.1.post_feedforward_layernorm.weight"
FAMILIES = ("llama", "gpt2", "granite")


def model_of(variant):
    folder = tiny_families.source(variant)
    checkpoint = open_checkpoint(folder)
    return folder, checkpoint, family_checks.loaded(folder).base_model.double()


def rows_of(model, family, samples, group, recycled=None):
    """m and r, float64 [tokens, width] and [tokens, hidden]."""
    wanted = wanted_by(DOWN if recycled is None else Regression("down_proj", recycle=0.25), [group])
    [found] = capture(model, family, [samples], wanted)
    m, (a, b, c) = PLACE.rows(found, group, recycled)
    return m[found.mask], (a - b + c)[found.mask]


@pytest.mark.parametrize("variant", [*FAMILIES, "phi3", "gemma3_text", "dinov2"])
def test_it_gives_what_the_mlp_adds(variant):
    """But for a bias; where a norm follows, up to a length that is each token's own."""
    _, checkpoint, model = model_of(variant)
    [found] = capture(model, checkpoint.family, [tiny_families.samples(variant)], wanted_by(DOWN, GROUPS[:1]))
    m, added = (one[0][found.mask] for one in (found.down_input, found.mlp_output))
    fitted = m @ PLACE.old_weight(checkpoint, GROUPS[0])
    if checkpoint.family.post_norm is not None:
        assert torch.allclose(torch.cosine_similarity(fitted, added), torch.ones(()).double())
    else:
        assert torch.allclose(fitted - fitted.mean(0), added - added.mean(0), atol=1e-7)


@pytest.mark.parametrize("estimation", ["parallel", "sequential"])
@pytest.mark.parametrize(("variant", "options"), [
    ("llama", {"recycle": 0.25, "ridge": 0.3}), ("gpt2", {"ridge_relative": 0.1}), ("granite", {"ridge_relative": 0.1})
])  # fmt: skip
def test_fits_of_several_groups_solve_the_normal_equations(variant, options, estimation):
    """Of rows with sqrt(alpha) I below m and sqrt(alpha) W0 below r, by their singular values."""
    folder, checkpoint, model = model_of(variant)
    family, samples = checkpoint.family, tiny_families.samples(variant)
    passes = Passes(model, family, samples, 2, "float64")
    config = FitConfig(placement="down_proj", estimation=estimation, **options)
    found = fit_cut(config, GROUPS, resolve(str(folder)), None, lambda: passes, family)
    for number, (group, one) in enumerate(zip(GROUPS, found, strict=True)):
        before = number if estimation == "sequential" else 0
        with shortened(model, family, GROUPS[:before], found[:before]):
            m, r = rows_of(model, family, samples, group, one.recycled)
        old = PLACE.old_weight(checkpoint, group, one.recycled)
        alpha = options.get("ridge", 0) + options.get("ridge_relative", 0) * float(m.square().sum(0).mean())
        eye = alpha**0.5 * torch.eye(len(old), dtype=torch.float64)
        expected = torch.linalg.lstsq(torch.cat([m, eye]), torch.cat([r, eye @ old]), driver="gelsd").solution
        assert one.report["towards"] == "weight" and one.report["ridge"] == pytest.approx(alpha, rel=1e-6)
        assert (one.matrix - expected).norm() < 1e-5 * expected.norm(), "activations are float32 on their way"
        if one.recycled is not None:
            assert not old[one.recycled.neurons].any() and old.any()


@settings(max_examples=4, deadline=None)
@given(
    variant=st.sampled_from(FAMILIES),
    objective=st.sampled_from([{}, {"objective": "cosine_exact"}, {"ridge": 1e30}, {"estimation": "sequential"}]),
)
def test_without_end_it_is_the_old_weight(variant, objective):
    folder, checkpoint, model = model_of(variant)
    passes = Passes(model.float(), checkpoint.family, tiny_families.samples(variant), 2, "float32")
    size = {} if "ridge" in objective else {"ridge_relative": HUGE}
    config = FitConfig(placement="down_proj", **objective, **size)
    found = fit_cut(config, GROUPS, resolve(str(folder)), None, lambda: passes, checkpoint.family)
    for group, one in zip(GROUPS, found, strict=True):
        assert torch.equal(one.matrix, PLACE.old_weight(checkpoint, group))


@pytest.mark.parametrize("source", ["llama", "gemma"])
@pytest.mark.parametrize("fit", [{"objective": "cosine"}, {"recycle": 0.25}], ids=["cosine", "recycled"])
def test_the_saved_weight_is_then_as_it_was(request, source, fit, texts, tmp_path):
    """Up to one factor, as least squares has it: but for recycled neurons, whose columns are zero."""
    folder, down = request.getfixturevalue(source), "model.layers.1.mlp.down_proj.weight"
    config = FitConfig(placement="down_proj", ridge_relative=HUGE, **fit)
    cut = {"texts": texts, "cut": CutConfig(blocks=2, start=2), "out": tmp_path / "out", "device": "cpu"}
    replaceme.prune(folder, fit=config, verify=False, **cut)
    old, new = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "out"))
    kept = (new[down].abs() > 1e-20).any(0)
    assert kept.sum() == (24 if "recycle" not in fit else 18)
    gains = 1 + old[NORM] if source == "gemma" else torch.ones(16)  # of a norm after it, now all one
    ratio = (new[down] / old[down] / gains[:, None])[:, kept]
    assert torch.allclose(ratio, ratio.mean(), rtol=1e-5)


def test_refusals():
    for options, said in (
        ({"towards": "weight"}, "placement mlp has no origin weight of a ridge; set `towards: zero or identity`"),
        ({"towards": "identity", "placement": "down_proj"}, "has no origin identity of a ridge; set `towards: weight"),
        ({"towards": "weight", "placement": "block", "transform": "diagonal"}, "placement block has no origin weight"),
    ):
        with pytest.raises(ValueError, match=said):
            FitConfig(**options)
    assert FitConfig(placement="down_proj", towards="zero").origin == "zero" and FitConfig().origin == "zero"
