"""SliceGPT: a rotation alone changes nothing, and what is cut off are the least of the principal axes."""

import pytest
import torch
from given import cut_of

from replaceme.methods import slicegpt
from replaceme.methods.found import Found
from replaceme.methods.registry import running
from replaceme.models.loading import load_base_model, load_causal_model
from replaceme.models.model_config import family_of


def biased(model):
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)


CUT = cut_of([[2, 4]], 6)
SOURCES = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True, "edit": biased},
    "tied": {"tie_word_embeddings": True},
    "sharded": {"shard": "10KB"},
}


@pytest.fixture(scope="module")
def ids():
    return torch.randint(6, 66, (3, 17), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("source", ["biases", "tied"])
def test_nothing_changes_where_nothing_is_cut_off(
    source, make_llama, make_tokens, fitted, ids, write_found, tmp_path, monkeypatch
):
    monkeypatch.setattr(slicegpt, "width_for", lambda model, parameters: 16)
    folder = make_llama(**SOURCES[source])
    record, found = fitted(folder, make_tokens(samples=8), "slicegpt")
    assert max(found.report["energy_lost"]) < 1e-9
    write_found(record, CUT, found, tmp_path / "out")
    whole, sliced = (load_causal_model(one, "float32", "cpu")(ids).logits for one in (folder, tmp_path / "out"))
    assert float((whole - sliced).abs().max() / whole.abs().max()) < 1e-5


@pytest.mark.parametrize("source", SOURCES)
def test_the_sliced_model_is_the_original_with_its_stream_projected(
    source, make_llama, make_tokens, fitted, ids, write_found, tmp_path
):
    folder = make_llama(**SOURCES[source])
    record, found = fitted(folder, make_tokens(samples=8), "slicegpt", estimation="sequential")
    write_found(record, CUT, found, tmp_path / "out")
    model, sliced = (load_causal_model(one, "float32", "cpu") for one in (folder, tmp_path / "out"))
    whole, found_logits = model(ids).logits, sliced(ids).logits
    with running(model.base_model, family_of(model.config.to_dict(), "llama"), CUT, found):
        expected = model(ids).logits
    assert float((found_logits - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float((found_logits - whole).abs().max() / whole.abs().max()) > 1e-2, "something is cut off"
    assert torch.equal(model(ids).logits, whole), "the model is left as it was"


def by_hand(folder, tokens, axes):
    """Return residual streams [tokens, d] at every point, float64, one sequence at a time; projected where axes are
    given.
    """
    model = load_base_model(folder, "float64", "cpu")
    points = [[] for _ in range(13)]

    def at(point, rows):
        points[point].append(rows[0])
        return rows if point >= len(axes) else rows @ axes[point].double() @ axes[point].double().T

    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        states = at(0, model.embed_tokens(ids[mask][None]))
        positions = model.rotary_emb(states, torch.arange(states.shape[1])[None])
        for k, block in enumerate(model.layers):
            attention, _ = block.self_attn(
                block.input_layernorm(states), position_embeddings=positions, attention_mask=None
            )
            states = at(2 * k + 1, states + attention)
            states = at(2 * k + 2, states + block.mlp(block.post_attention_layernorm(states)))
    return [torch.cat(one) for one in points]


@pytest.mark.parametrize("estimation", ["parallel", "sequential"])
def test_the_axes_are_the_principal_ones_at_each_point(estimation, llama, make_tokens, fitted):
    tokens = make_tokens(samples=8)
    _, found = fitted(llama, tokens, "slicegpt", estimation=estimation)
    axes = [found.tensors[str(point)] for point in range(13)]
    streams = by_hand(llama, tokens, axes if estimation == "sequential" else [])
    for point, (rows, given, lost) in enumerate(zip(streams, axes, found.report["energy_lost"], strict=True)):
        width = given.shape[1]
        assert (given.T @ given - torch.eye(width)).abs().max() < 1e-5
        values = torch.linalg.svdvals(rows).square()
        left = (rows - rows @ given.double() @ given.double().T).square().sum()
        assert float(left) == pytest.approx(float(values[width:].sum()), rel=1e-3, abs=1e-6 * float(values.sum())), (
            point
        )
        assert lost == pytest.approx(float(values[width:].sum() / values.sum()), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize(("source", "blocks"), [("biases", 1), ("tied", 3)])
def test_the_width_is_the_largest_that_fits(source, blocks, make_llama, make_tokens, fitted, write_found, tmp_path):
    folder = make_llama(**SOURCES[source])
    cut = cut_of([[1, 1 + blocks]], 6)
    record, found = fitted(folder, make_tokens(samples=4), "slicegpt", cut)
    write_found(record, cut, found, tmp_path / "out")
    target = record.parameters - sum(record.block_parameters[1 : 1 + blocks])
    count = load_causal_model(tmp_path / "out", "float32", "cpu").num_parameters()
    base = load_base_model(folder, "float32", "cpu")
    assert count <= target and found.report["width"] == slicegpt.width_for(base, target) == slicegpt.width_for(
        base, count
    )
    assert slicegpt.width_for(base, count - 1) == found.report["width"] - 1


def test_axes_of_another_model_are_refused(llama, make_llama, make_tokens, fitted, write_found, tmp_path, refuses):
    record, found = fitted(llama, make_tokens(samples=4), "slicegpt")
    fewer = Found("slicegpt", {str(point): found.tensors[str(point)] for point in range(11)}, found.report)
    with refuses("another shape", "fit them again"):
        write_found(record, CUT, fewer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
