"""Gradients: the same bits each time, and torch as it was before."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replaceme.activations.gradients import backward, repeatable
from replaceme.activations.language_loss import token_losses
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError


def settings():
    """Return the settings of torch that these functions change."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_afterwards_torch_is_as_before():
    before, weight = settings(), torch.ones(3, requires_grad=True)
    with repeatable():
        within = settings()
        backward((weight * 2).sum())
        assert settings() == within == (True, True, False)
    assert settings() == before
    assert weight.grad.tolist() == [2, 2, 2]


class Refused(torch.autograd.Function):
    """An operation without a deterministic backward pass."""

    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_deterministic_algorithms_warn_only_enabled():
            return gradient
        raise RuntimeError("thrown does not have a deterministic implementation, but you set it.\nMore of it.")


def test_an_operation_that_has_no_deterministic_way_is_one_line():
    before, weight = settings(), torch.ones(3, requires_grad=True)
    with pytest.raises(ReplaceMeError, match="thrown does not have a deterministic") as error, repeatable():
        backward(Refused.apply(weight).sum())
    assert "\n" not in str(error.value)
    assert "device: cpu" in str(error.value)
    assert settings() == before


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward(torch.ones(1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_a_gpu_gives_the_same_bits_each_time(dtype, padded):
    """Long enough for several thread blocks to add to one gradient; without `backward` it differs at once."""
    torch.manual_seed(0)
    options = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000}
    model = LlamaForCausalLM(LlamaConfig(hidden_size=512, intermediate_size=512, **options)).to("cuda", dtype)
    ids = torch.randint(0, 1000, (8, 768), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, 500:] = not padded
    found = []
    for _ in range(5):
        model.zero_grad()
        with repeatable():
            backward(token_losses(model, Tokens(ids, mask))[0].mean())
        found.append([one.grad.clone() for one in model.parameters()])
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))
