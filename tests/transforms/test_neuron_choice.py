"""The choice of inputs against a greedy search that solves every smaller problem anew."""

import pytest
import torch

from replaceme.activations.statistics import Statistics
from replaceme.transforms import neuron_choice
from replaceme.transforms.neuron_choice import keep_best, keep_best_runs

RELATIVE = 0.05


def problem(seed, inputs=14, outputs=3, tokens=60):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = normal(tokens, inputs) @ normal(inputs, inputs)
    rows[:, 5] = 0
    statistics = Statistics.zeros(outputs, width=inputs)
    statistics.add_batch(rows, rows @ normal(inputs, outputs) + 3 * normal(tokens, outputs))
    return statistics, normal(inputs, outputs)


def smallest(statistics, origin, alpha, kept):
    """The least of the penalised sum over some inputs, but for the energy of the target."""
    kept = torch.tensor(kept)
    gram = statistics.gram[kept][:, kept] + alpha * torch.eye(len(kept), dtype=torch.float64)
    right = statistics.cross[kept] + alpha * origin[kept]
    return float(alpha * origin[kept].square().sum() - (right * torch.linalg.solve(gram, right)).sum())


@pytest.mark.parametrize(("block", "candidates"), [(128, 2), (1, 1), (3, 5)], ids=["at once", "singly", "in blocks"])
def test_each_step_takes_out_what_is_missed_least(monkeypatch, block, candidates):
    monkeypatch.setattr(neuron_choice, "BLOCK", block)
    monkeypatch.setattr(neuron_choice, "CANDIDATES", candidates)
    for seed in range(4):
        statistics, origin = problem(seed)
        alpha, left = RELATIVE * float(statistics.gram.diagonal().mean()), list(range(14))
        while len(left) > 7:
            losses = [smallest(statistics, origin, alpha, [k for k in left if k != one]) for one in left]
            left.pop(losses.index(min(losses)))
        assert keep_best(statistics, origin, RELATIVE, 7).tolist() == left and 5 not in left


def test_runs_stay_or_go_as_a_whole():
    for seed in range(4):
        statistics, origin = problem(seed)
        alpha, left = RELATIVE * float(statistics.gram.diagonal().mean()), list(range(7))

        def without(one, left=left, statistics=statistics, origin=origin, alpha=alpha):
            return smallest(statistics, origin, alpha, [2 * k + i for k in left if k != one for i in range(2)])

        while len(left) > 3:
            losses = [without(one) for one in left]
            left.pop(losses.index(min(losses)))
        assert keep_best_runs(statistics, origin, RELATIVE, 2, 3) == left


@pytest.mark.parametrize(("rows", "told"), [
    (torch.zeros(9, 4), "zero in every token; use other or more calibration text"),
    (torch.full((9, 4), torch.nan), "NaN or infinity in gram"),
])  # fmt: skip
def test_inputs_that_say_nothing_are_one_line(rows, told, refuses):
    statistics = Statistics.zeros(2, width=4)
    statistics.gram, statistics.tokens = rows.T.double() @ rows.double(), len(rows)
    for keep in (lambda *given: keep_best(*given, 2), lambda *given: keep_best_runs(*given, 2, 1)):
        with refuses(told):
            keep(statistics, torch.ones(4, 2, dtype=torch.float64), RELATIVE)


def test_inputs_that_are_alike_are_one_line(refuses):
    rows = torch.ones(9, 4, dtype=torch.float64)
    statistics = Statistics.zeros(2, width=4)
    statistics.add_batch(rows, rows[:, :2])
    with refuses("too alike for so small a ridge"):
        keep_best(statistics, torch.ones(4, 2, dtype=torch.float64), 1e-20, 2)
