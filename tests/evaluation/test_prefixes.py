"""Texts begin once, as the tokenizer begins them: against log-likelihoods of the model's own logits."""

import pytest
import torch

from replaceme.evaluation import prefixes
from replaceme.evaluation.lm_eval import language_model

TEXT = "w1 w2 w3 w4 w5 w6 w7"
IDS = list(range(7, 14))  # of that text
BOS, EOS, OTHER = 2, 3, 0
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def model(llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(llama).eval()


def wrapped(model, template="$A", special=SPECIAL, config=None):
    """Return the wrapper of the model with a tokenizer that begins and ends texts by a template."""
    import copy

    from conftest import tiny_tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = tiny_tokenizer().backend_tokenizer
    named = [("<s>", BOS), ("</s>", EOS), ("<pad>", OTHER)]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=named)
    model = copy.copy(model)
    model.config = copy.deepcopy(model.config)
    model.config.update(config or {})
    return language_model(model, PreTrainedTokenizerFast(tokenizer_object=backend, **special), 4)


def request(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, ("task", 0, 1))


def expected(model, before, ids):
    """Return the log-likelihood of tokens after those before."""
    with torch.no_grad():
        logits = model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
    return sum(logits[len(before) + k - 1, one].item() for k, one in enumerate(ids))


def rolled(lm, text=TEXT):
    return lm.loglikelihood_rolling([request("loglikelihood_rolling", text)])[0]


@pytest.mark.parametrize(("template", "before", "ids"), [
    ("$A", [BOS], IDS), ("<s> $A", [BOS], IDS), ("<s> $A </s>", [BOS], [*IDS, EOS]),
    ("<pad> <s> $A", [OTHER, BOS], IDS),
])  # fmt: skip
def test_a_text_begins_once(model, template, before, ids):
    lm = wrapped(model, template)
    assert rolled(lm) == pytest.approx(expected(model, before, ids), rel=1e-5)
    assert rolled(lm, "") == (0 if ids == IDS else pytest.approx(expected(model, before, [EOS]), rel=1e-5))


def test_a_text_that_holds_its_beginning(model):
    assert rolled(wrapped(model), f"<s> {TEXT}") == pytest.approx(expected(model, [BOS], IDS), rel=1e-5)


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("special", [SPECIAL, {"unk_token": "<unk>"}])
def test_texts_that_are_encoded_together_are_as_each_alone(model, template, special, monkeypatch):
    """Also one that holds its beginning, and the same context of several answers, with a space at its end."""
    monkeypatch.setattr(prefixes, "ENCODED_AT_ONCE", 2)
    lm = wrapped(model, template, special, {"bos_token_id": None, "eos_token_id": None})
    pairs = [("w1 w2", " w3"), ("w1 w2", " w4 w5"), ("<s> w1", " w2"), ("w1 w2 ", "w6"), ("w3", "")]
    texts = sorted({text for context, answer in pairs for text in (context, context.rstrip(), context + answer)})
    alone = {text: lm.tok_encode(text) for text in texts}
    lm._encoded = lm._encode_all(texts)
    assert len(lm._encoded) >= len(texts) - 2 and {text: lm.tok_encode(text) for text in texts} == alone


@pytest.mark.parametrize("template", ["$A", "<s> $A"])
def test_long_texts_in_windows(model, template):
    """Of 4 tokens; those of a tokenizer that adds nothing are lm-eval's own."""
    from lm_eval.models.huggingface import HFLM

    lm = wrapped(model, template)
    lm._max_length = 4
    texts = [request("loglikelihood_rolling", text) for text in (TEXT, "w5", "", TEXT[:11])]
    found = lm.loglikelihood_rolling(texts)
    windows = expected(model, [BOS], IDS[:4]) + expected(model, IDS[2:4], IDS[4:])
    assert found[0] == pytest.approx(windows, rel=1e-5)
    if template == "$A":
        assert found == HFLM.loglikelihood_rolling(lm, texts)


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
def test_an_answer_is_all_of_its_tokens(model, template):
    lm = wrapped(model, template)
    [(found, _)] = lm.loglikelihood([request("loglikelihood", "w1 w2 w3", " w4 w5 w6 w7")])
    before = [BOS] if "<s>" in template else []
    assert found == pytest.approx(expected(model, [*before, *IDS[:3]], IDS[3:]), rel=1e-5)


def test_without_special_tokens_those_of_the_config_are_taken(model):
    lm = wrapped(model, special={}, config={"bos_token_id": None, "eos_token_id": [EOS, 5]})
    assert rolled(lm) == pytest.approx(expected(model, [EOS], IDS), rel=1e-5)
    assert lm.tokenizer.pad_token_id == EOS


def test_without_any_special_token(model, refuses):
    """Answers to prompts are measured and texts go on in a batch of unequal ones; what has no beginning is refused."""
    lm = wrapped(model, special={}, config={"bos_token_id": None, "eos_token_id": None, "pad_token_id": None})
    pairs = [request("loglikelihood", "w1 w2 w3", " w4 w5"), request("loglikelihood", "w1", " w2")]
    (found, _), (other, _) = lm.loglikelihood(pairs)
    assert found == pytest.approx(expected(model, IDS[:3], IDS[3:5]), rel=1e-5)
    assert other == pytest.approx(expected(model, IDS[:1], IDS[1:2]), rel=1e-5)
    asked = {"until": ["w99"], "max_gen_toks": 3, "do_sample": False}
    long, short = (request("generate_until", text, dict(asked)) for text in ("w1 w2 w3 w4", "w5"))
    together, alone = lm.generate_until([long, short]), lm.generate_until([short])
    assert together[1] == alone[0] and len(alone[0].split()) == 3
    lm.check([*pairs, long])
    for asked in (request("loglikelihood_rolling", TEXT), request("loglikelihood", "", " w1")):
        with refuses("evaluation task 'task': ", "neither the tokenizer nor config.json has a bos or eos token"):
            lm.check([*pairs, asked])


def test_answers_without_tokens_are_found_before_any_is_measured(model, refuses):
    lm = wrapped(model)
    lm._model_call = None
    with refuses("evaluation: the answer ' ' is 0 tokens long"):
        lm.loglikelihood([request("loglikelihood", "w1 w2 w3 w4", " w5"), request("loglikelihood", "w1", " ")])
