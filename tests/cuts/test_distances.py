"""All L x L distances against a loop over tokens, or the definition by channels, in float64."""

import csv
import importlib
import math
from types import SimpleNamespace

import pytest
import torch

from replaceme.cuts.distances import last_tokens, load, measure, save

NAMES = {f"{metric}_{position}" for metric in ("cosine", "angular", "l2", "bi") for position in ("all", "last")}
NAMES |= {"cka_all", "cca_all"}


def brute_force(hidden, ends):
    """Return matrices by the definition, one pair and one token at a time; hidden [blocks, tokens, d]."""
    count = len(hidden)
    found = {name: torch.zeros(count, count, dtype=torch.float64) for name in NAMES}
    for position, chosen in (("all", range(hidden.shape[1])), ("last", ends.tolist())):
        for i in range(count):
            for j in range(count):
                cosines = [
                    float(hidden[i, t] @ hidden[j, t] / hidden[i, t].norm() / hidden[j, t].norm()) for t in chosen
                ]
                cosines = [1.0 if i == j else min(1.0, max(-1.0, c)) for c in cosines]
                found[f"cosine_{position}"][i, j] = sum(1 - c for c in cosines) / len(cosines)
                found[f"angular_{position}"][i, j] = sum(math.acos(c) / math.pi for c in cosines) / len(cosines)
                found[f"l2_{position}"][i, j] = sum(float((hidden[i, t] - hidden[j, t]).norm()) for t in chosen) / len(
                    chosen
                )
        for i in range(count):
            for j in range(count):
                between = range(min(i, j), max(i, j))
                found[f"bi_{position}"][i, j] = sum(float(found[f"cosine_{position}"][k, k + 1]) for k in between)
    for i in range(count):
        for j in range(i):
            for name, value in (("cka", cka(hidden[i], hidden[j])), ("cca", cca(hidden[i], hidden[j]))):
                found[f"{name}_all"][i, j] = found[f"{name}_all"][j, i] = value
    return found


def cka(x, y):
    """Return 1 - linear CKA by products of channels: |Y^T X|^2 / (|X^T X| |Y^T Y|), centred."""
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - float((y.T @ x).square().sum() / (x.T @ x).norm() / (y.T @ y).norm())


def cca(x, y):
    """Return 1 - mean canonical correlation by whitening: singular values of Sxx^-1/2 Sxy Syy^-1/2, centred."""
    x, y = x - x.mean(0), y - y.mean(0)

    def white(z):
        values, vectors = torch.linalg.eigh(z.T @ z)
        return vectors @ torch.diag(values**-0.5) @ vectors.T

    return 1 - float(torch.linalg.svdvals(white(x) @ x.T @ y @ white(y)).mean())


@pytest.mark.parametrize("tokens_at_once", [4096, 7], ids=["one chunk", "chunks of 7"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_equals_the_definition(source, request, side, tokens_at_once, make_tokens, blocks_of, brute_rows, monkeypatch):
    kernels = importlib.import_module("replaceme.kernels.pairwise_cosine")
    monkeypatch.setattr(kernels, "REFERENCE_CHUNK_BYTES", tokens_at_once * 8 * 6 * 16)
    folder, tokens = request.getfixturevalue(source), make_tokens(samples=6, side=side)
    found = measure(*blocks_of(folder, "float64"), tokens, batch_size=4, representations=True)
    hidden, _, ends = brute_rows(folder, tokens)
    expected = brute_force(hidden, ends)
    assert found.keys() == NAMES
    for name in NAMES:
        assert found[name].dtype == torch.float64
        assert (found[name] - expected[name]).abs().max() <= 1e-6 * max(1, expected[name].max()), name
    assert (found["cosine_all"] - found["cosine_last"]).abs().max() > 1e-3, "positions differ on this model"


def test_diagonal_is_exactly_zero_and_the_rest_symmetric_and_positive(llama, make_tokens, blocks_of):
    for matrix in measure(*blocks_of(llama), make_tokens(), 5, True).values():
        assert (matrix.diagonal() == 0).all()
        assert (matrix - matrix.T).abs().max() <= 1e-14
        assert (matrix[~torch.eye(6, dtype=torch.bool)] > 0).all()


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_padding_and_batches_change_nothing(llama, make_tokens, blocks_of, batch_size):
    model, family = blocks_of(llama)
    expected = measure(model, family, make_tokens(), 6, True)
    found = measure(model, family, make_tokens(side="left", extra=9, filler=44), batch_size, True)
    assert all((found[name] - expected[name]).abs().max() <= 1e-6 * max(1, expected[name].max()) for name in NAMES)


def test_last_tokens():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    expected = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    assert torch.equal(last_tokens(mask), expected)


def test_csv_and_safetensors_hold_the_same_numbers(llama, make_tokens, blocks_of, tmp_path):
    matrices = measure(*blocks_of(llama), make_tokens(samples=4), 4, True)
    save(tmp_path / "distances.safetensors", matrices, {"model": "x"})
    loaded, metadata = load(tmp_path / "distances.safetensors")
    assert metadata == {"model": "x"} and all(torch.equal(loaded[name], matrices[name]) for name in NAMES)
    rows = list(csv.DictReader((tmp_path / "distances.csv").open()))
    assert [(int(row["i"]), int(row["j"])) for row in rows] == [(i, j) for i in range(6) for j in range(6)]
    for row in rows:
        assert all(float(row[name]) == float(matrices[name][int(row["i"]), int(row["j"])]) for name in NAMES)


def test_two_runs_give_the_same_bytes(llama, make_tokens, blocks_of, tmp_path):
    for name in ("one", "two"):
        save(tmp_path / f"{name}.safetensors", measure(*blocks_of(llama), make_tokens(), 5), {"a": 1, "b": 2})
    for suffix in ("safetensors", "csv"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_another_kind_of_file_is_refused(tmp_path, refuses):
    from replaceme.core.files import save_tensors

    save_tensors(tmp_path / "tokens.safetensors", {"mask": torch.ones(2)}, {})
    with refuses("not a distance file", "replaceme distances"):
        load(tmp_path / "tokens.safetensors")


def test_representations_are_measured_when_asked_for_and_cca_with_enough_tokens(llama, make_tokens, blocks_of, refuses):
    from replaceme.config.cuts import CutConfig
    from replaceme.cuts.choose import choose

    plain = measure(*blocks_of(llama), make_tokens(), 5)
    assert plain.keys() == NAMES - {"cka_all", "cca_all"}
    few = measure(*blocks_of(llama), make_tokens(samples=1, longest=20), 5, True)
    assert "cka_all" in few and "cca_all" not in few
    with refuses("the distances hold no cca", "--representations"):
        choose(CutConfig(blocks=2, metric="cca"), SimpleNamespace(num_blocks=6), few)
