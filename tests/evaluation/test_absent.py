"""Models without parts: which a cut removes, and that they compute what the cut leaves."""

import torch

from replaceme.evaluation.absent import ATTENTION, BLOCK, MLP, parts_gone, without_cut
from replaceme.models.checkpoints import read_config
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import family_of
from replaceme.surgery.shortened_model import shortened

GROUPS = [(1, 2), (3, 3.5), (3.5, 4), (4.5, 5.5)]  # block 1; both halves of block 3; the MLP of 4, the attention of 5


def test_what_a_cut_removes_by_block():
    assert parts_gone(6, GROUPS) == {BLOCK: [1, 3], ATTENTION: [5], MLP: [4]}
    assert parts_gone(6, []) == {BLOCK: [], ATTENTION: [], MLP: []}


def test_a_model_without_a_cut_computes_what_is_left_and_is_whole_again(llama):
    model, ids = load_causal_model(llama, "float32", "cpu"), torch.arange(6, 14)[None]
    family = family_of(read_config(llama), "llama")
    with torch.inference_mode():
        whole = model(ids).logits
        with shortened(model.base_model, family, GROUPS, [None] * len(GROUPS)):
            expected = model(ids).logits
        with without_cut(model, family, GROUPS):
            found = model(ids).logits
            kept = model(ids, use_cache=True).past_key_values
        assert torch.equal(found, expected) and not torch.equal(found, whole)
        assert [layer.keys is not None for layer in kept.layers] == [True, False, True, False, True, False]
        assert torch.equal(model(ids).logits, whole)
