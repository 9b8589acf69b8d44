"""The divergence of two models' predictions: values and gradients of the plain computation, in parts of the tokens."""

import pytest
import torch
from conftest import SIZES
from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig, OPTConfig

from replaceme.activations.divergence import Predictions, descend, divergences
from replaceme.activations.gradients import repeatable
from replaceme.activations.head import Head

OPT = {"ffn_dim": 24, "num_hidden_layers": 2, "do_layer_norm_before": True, "word_embed_proj_dim": 16}
CONFIGS = {
    "capped": Gemma2Config(**{**SIZES, "num_hidden_layers": 2}, head_dim=8, final_logit_softcapping=0.5),
    "scaled": GraniteConfig(**{**SIZES, "num_hidden_layers": 2}, logits_scaling=0.2),
    "without a base model of its own": OPTConfig(**{**SIZES, **OPT}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_values_and_gradients(config, make_tokens):
    torch.manual_seed(0)
    whole, other = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    tokens = make_tokens(samples=3, side="right", extra=2)
    heads = [Head(whole), Head(other)]
    for head in heads:
        head.rows = 4
    with repeatable():
        with torch.no_grad():
            first = Predictions.of(heads[0], tokens)
        second = Predictions.of(heads[1], tokens)
        values = descend(first, second, 0.5)
    gradients = {name: one.grad.double() for name, one in other.named_parameters() if one.grad is not None}
    assert torch.equal(values, divergences(first, second)) and len(values) == tokens.count > 8
    other.zero_grad()
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.mask.long()}
    p, q = (one.double()(**given).logits[tokens.mask].log_softmax(-1) for one in (whole, other))
    plain = (p.exp() * (p - q)).sum(-1)
    (0.5 * plain.sum()).backward()
    torch.testing.assert_close(values.double(), plain, rtol=1e-4, atol=1e-6)
    assert len(gradients) > 10 and float(values.mean()) > 1e-4
    scale = max(float(one.abs().max()) for one in gradients.values())
    for name, one in other.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], one.grad, rtol=1e-3, atol=1e-5 * scale)


def test_a_decoder_that_has_a_head_of_its_own(make_tokens):
    """As that of Llama 4 for text and pictures."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = {**SIZES, "num_hidden_layers": 2, "head_dim": 8, "intermediate_size_mlp": 24, "num_local_experts": 2}
    seeing = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    seeing |= {"image_size": 28, "patch_size": 14, "projector_input_dim": 16, "projector_output_dim": 16}
    config = Llama4Config(text_config=text, vision_config={**seeing, "vision_output_dim": 16})
    model, tokens = Llama4ForConditionalGeneration(config).eval(), make_tokens(samples=3)
    head = Head(model)
    with torch.no_grad():
        found = head.logits(head.states(tokens))
        plain = model(input_ids=tokens.input_ids, attention_mask=tokens.mask.long()).logits[tokens.mask]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
