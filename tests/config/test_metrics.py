"""A metric is its function and one entry of the registry: the schema, the measuring, the choice and figures follow."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from replaceme.config import metrics
from replaceme.config.metrics import Metric
from replaceme.core.named import import_named
from replaceme.cuts.after_fit import candidates_of
from replaceme.cuts.choose import choose
from replaceme.cuts.distances import load, measure, save
from replaceme.models.loading import load_causal_model

RECORD = SimpleNamespace(num_blocks=6, parameters=1000, block_parameters=[100] * 6)


@pytest.fixture
def toy(monkeypatch):
    """A function that enters a toy metric into a part of the registry and returns the schema of cuts that knows it."""

    def enter(part, function):
        monkeypatch.setitem(sys.modules, "replaceme_toy", SimpleNamespace(function=function))
        monkeypatch.setitem(getattr(metrics, part), "toy", Metric("toys", "replaceme_toy.function"))
        spec = importlib.util.find_spec("replaceme.config.cuts")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.CutConfig

    return enter


def test_a_distance(toy, llama, make_tokens, blocks_of, tmp_path):
    import torch

    def function(states, flags):
        found = torch.zeros(len(states), len(states), dtype=torch.float64)
        for i, one in enumerate(states):
            for j, other in enumerate(states):
                found[i, j] = (one[flags].double() - other[flags].double()).abs().amax(-1).mean()
        return {"toy": found}

    schema = toy("DISTANCES", function)
    save(tmp_path / "distances.safetensors", measure(*blocks_of(llama), make_tokens(), 5), {})
    matrices, _ = load(tmp_path / "distances.safetensors")
    chosen = choose(schema(blocks=2, metric="toy", position="last"), RECORD, matrices)
    values = {(one["start"], one["end"]): one["toy"] for one in chosen.candidates}
    assert min(values, key=values.get) == tuple(chosen.groups[0]) and len(set(values.values())) == 4
    assert metrics.labels()["toy"] == "toys"


def test_a_representation(toy, llama, make_tokens, blocks_of):
    schema = toy("REPRESENTATIONS", lambda centred: (1 - import_named("replaceme.cuts.similarity.cka")(centred)).neg())
    cut = schema(blocks=2, metric="toy")
    chosen = choose(cut, RECORD, measure(*blocks_of(llama), make_tokens(), 5, cut.of_representations))
    assert chosen.metric == "toy" and all(one["toy"] < 0 for one in chosen.candidates)
    with pytest.raises(ValueError, match="averages over all tokens"):
        schema(blocks=2, metric="toy", position="last")


def measured(cut, llama, make_tokens):
    from replaceme.models.families import SEQUENTIAL

    model = load_causal_model(llama, "float32", "cpu")
    found = candidates_of(cut, RECORD, model, SEQUENTIAL, make_tokens(samples=30), 7)["candidates"]
    return choose(cut, RECORD, candidates=found)


def test_a_metric_after_the_fit(toy, llama, make_tokens):
    schema = toy("AFTER_FIT", lambda fitted: [{"toy": -float(one.matrix.norm())} for one in fitted.transforms])
    chosen = measured(schema(blocks=2, metric="toy"), llama, make_tokens)
    values = {one["start"]: one["toy"] for one in chosen.candidates}
    assert chosen.groups[0][0] == min(values, key=values.get)
    assert all({"residual", "cosine_after_fit"} < one.keys() for one in chosen.candidates)


def test_a_metric_without_a_fit(toy, llama, make_tokens):
    def function(model, family, tokens, batch_size):
        return lambda gone, runs: [float(-start - len(gone)) for start, _ in runs]

    schema = toy("WITHOUT_FIT", function)
    assert measured(schema(blocks=2, metric="toy"), llama, make_tokens).groups == [(4, 6)]
    assert measured(schema(blocks=2, metric="toy", search="iterative"), llama, make_tokens).parts == [(4, 5), (5, 6)]


@pytest.mark.parametrize("metric", metrics.every_metric())
def test_every_function_is_there(metric):
    assert callable(import_named(metrics.every_metric()[metric].function))
