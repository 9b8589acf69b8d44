"""A family of each kind that a method does not refuse: the reloaded model is the original run as the method says."""

import pytest
from family_checks import EXACT, difference, loaded, outputs
from given import cut_of
from tiny_families import BLOCKS, GROUPS, config_of, samples, source

from replaceme.config.fits import fit_config
from replaceme.fitting.passes import Passes
from replaceme.methods.fitting import fit_method
from replaceme.methods.registry import METHODS, running
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.model_config import family_of

CUT = cut_of(GROUPS, BLOCKS)
# heads that are all shared leave less to take out, and only attentions of one kind can be merged
CUTS = {"llm_pruner": cut_of(GROUPS[:1], BLOCKS), "flattengpt": cut_of([(1, 2), (4, 6)], BLOCKS)}
OPTIONS = {"llm_streamline": {"epochs": 1, "learning_rate": 0.01}}


def offered(method, model_type):
    config = config_of(model_type).to_dict()  # a model would be made while tests are collected
    return METHODS[method].refusal(family_of(config, model_type), config) is None


# gated and plain MLPs with biases, one fused weight, blocks in parallel, norms after the MLP, other names and layouts
KINDS = ("qwen2", "qwen3", "phi3", "gpt2", "falcon", "phi", "gemma2", "gpt_neox")
PAIRS = [(method, one) for method in METHODS for one in KINDS if offered(method, one)]


@pytest.mark.parametrize("method", METHODS)
def test_some_kinds_are_tried(method):
    assert sum(pair[0] == method for pair in PAIRS) >= 2


@pytest.mark.parametrize(("method", "model_type"), PAIRS)
def test_the_reloaded_model_is_the_original_run_as_the_method_says(method, model_type, write_found, tmp_path):
    model, record = loaded(source(model_type)), resolve(str(source(model_type)))
    cut = CUTS.get(method, CUT)
    family = family_of(read_config(source(model_type)), model_type)
    before = outputs(model, model_type)
    passes = Passes(model.base_model, family, samples(model_type), 2, "float32", headed=model)
    found = fit_method(passes, fit_config(method=method, **OPTIONS.get(method, {})), cut, record)
    write_found(record, cut, found, tmp_path / "out")
    assert difference(outputs(model, model_type), before) == 0, "the fit leaves the model as it was"
    with running(model.base_model, family, cut, found):
        expected = outputs(model, model_type)
    # of a pair of factors each product is rounded, which norms after the MLP enlarge (Gemma 2: 7e-5)
    allowed = (30 if method == "svd_llm" else 5) * EXACT
    assert difference(outputs(loaded(tmp_path / "out"), model_type), expected) < allowed
    assert difference(expected, before) > 1e-3
