"""Healing: what is trained and nothing else, by hand; the same bits after an interruption; what is written; errors."""

import gc
import json

import pytest
import torch
from safetensors.torch import load_file

import replaceme
from replaceme.activations.capture import model_inputs
from replaceme.activations.text_order import TextOrder
from replaceme.calibration.tokens import Tokens
from replaceme.cli import main
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.healings import TrainingConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.healing.heal import Output, heal_checkpoint
from replaceme.models.checkpoints import check_merged, open_checkpoint, read_config
from replaceme.models.loading import load_causal_model
from replaceme.surgery.edits import Changes
from replaceme.verification import verify
from replaceme.verification.reload import fixed_tokens

TEXT = {"mix": [{"dataset": "given"}, {"dataset": "others"}]}
CUT = CutConfig(blocks=2, start=3)
CARRIER = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def merged(llama, texts, tmp_path_factory):
    """The tiny Llama without blocks 3 and 4; its carrier is block 2."""
    out = tmp_path_factory.mktemp("merged") / "model"
    replaceme.prune(llama, texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    gc.freeze()  # a healing collects garbage, and would look through all that was imported
    yield out
    gc.unfreeze()


@pytest.fixture(scope="module")
def tokens(make_tokens):
    return make_tokens(samples=20)


def options(train="transform", **more):
    given = {"steps": 3, "learning_rate": 0.01, "batch_size": 4, "held_out": 4, "schedule": "constant"}
    return TrainingConfig(train=train, **{**given, **more})


def heal(folder, tokens, out, given, original=None, **more):
    output = Output(out, **{"verify": False, **more})
    return heal_checkpoint(folder, tokens, TEXT, given, output, "cpu", original=original)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def checked_here(monkeypatch):
    """The comparison with what was trained in this process, where a fresh one for each test would take too long."""

    def compare(expected, record, edited, folder, **_):
        tokens = fixed_tokens(read_config(folder))
        model = load_causal_model(folder, "float32", "cpu")
        with torch.no_grad():
            torch.testing.assert_close(model(**model_inputs(model, tokens)).logits, expected(tokens, "cpu"))
        return {"model": str(folder), "checks": {"logits": {"outcome": "passed"}}}

    monkeypatch.setattr("replaceme.healing.heal.verify_against", compare)


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def loss_by_hand(model, batch):
    """Return the mean over all tokens of a batch that follow one, each sequence on its own and without its padding."""
    losses = [
        torch.nn.functional.cross_entropy(model(ids[None, mask]).logits[0, :-1], ids[mask][1:], reduction="sum")
        for ids, mask in zip(batch.input_ids, batch.mask, strict=True)
    ]
    return sum(losses) / sum(int(mask.sum()) - 1 for mask in batch.mask)


def divergence_by_hand(original, model, batch):
    """Return the mean over all tokens of KL(original || model), each sequence on its own and without its padding."""
    whole, found = load_causal_model(original, "float64", "cpu"), []
    for ids, mask in zip(batch.input_ids, batch.mask, strict=True):
        p, q = (one(ids[None, mask]).logits[0].log_softmax(-1) for one in (whole, model))
        found.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(found).mean()


def adam_by_hand(gradient, learning_rate):
    """Return the first step of Adam, after the gradient was clipped to a norm of 1."""
    gradient = gradient / max(1.0, float(gradient.norm()))
    return -learning_rate * gradient / (gradient.abs() + 1e-8)


@pytest.mark.parametrize("side", ["right", "left"])
def test_one_step_of_a_transform_is_autograd_by_hand(merged, make_tokens, tmp_path, side):
    """In float64 from T^T W itself: no hook, no padding, no passes."""
    tokens = make_tokens(samples=8, side=side, extra=3)
    given = options(steps=1, batch_size=2, accumulation=2, held_out=2)
    heal(merged, tokens, tmp_path / "out", given)
    before, after = weights(merged), weights(tmp_path / "out")
    assert changed(before, after) == {CARRIER}

    model = load_causal_model(merged, "float64", "cpu")
    down = model.model.layers[2].mlp.down_proj
    original = down.weight.detach().clone()
    transform = torch.eye(16, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))[:4]
    batch = Tokens(tokens.input_ids[order], tokens.mask[order])
    del down.weight
    down.weight = transform.T @ original
    loss_by_hand(model, batch).backward()
    with torch.no_grad():
        expected = (transform + adam_by_hand(transform.grad, 0.01)).T @ original
    torch.testing.assert_close(after[CARRIER].double(), expected, atol=2e-6, rtol=0)
    assert (expected - original).abs().max() > 1e-3


def test_one_step_of_all_weights_is_autograd_by_hand(merged, tokens, tmp_path):
    heal(merged, tokens, tmp_path / "out", options("full", steps=1, clip=None))
    model = load_causal_model(merged, "float64", "cpu").requires_grad_(True)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))[:4]
    loss_by_hand(model, Tokens(tokens.input_ids[order], tokens.mask[order])).backward()
    after = weights(tmp_path / "out")
    for name, parameter in model.named_parameters():
        steep = parameter.grad.abs() > 1e-5  # elsewhere the direction is a matter of rounding, in float32
        expected = parameter - 0.01 * parameter.grad.sign()
        torch.testing.assert_close(after[name].double()[steep], expected.detach()[steep], atol=2e-5, rtol=0)


def test_one_step_of_a_distillation_is_autograd_by_hand(llama, merged, tokens, tmp_path):
    """The divergence from the model before it was shortened, over all unmasked tokens; and it falls."""
    given = options("full", steps=1, clip=None, objective="distillation", learning_rate=0.001)
    report = heal(merged, tokens, tmp_path / "out", given, original=llama)
    model = load_causal_model(merged, "float64", "cpu").requires_grad_(True)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))[:4]
    divergence_by_hand(llama, model, tokens[order]).backward()
    after = weights(tmp_path / "out")
    for name, parameter in model.named_parameters():
        steep = parameter.grad.abs() > 1e-5
        expected = parameter - 0.001 * parameter.grad.sign()
        torch.testing.assert_close(after[name].double()[steep], expected.detach()[steep], atol=2e-5, rtol=0)
    with torch.no_grad():
        expected = {
            when: float(divergence_by_hand(llama, load_causal_model(folder, "float64", "cpu"), tokens[-4:]))
            for when, folder in (("before", merged), ("after", tmp_path / "out"))
        }
    assert report["kl"] == pytest.approx(expected, rel=1e-4) and expected["after"] < expected["before"]
    card = (tmp_path / "out/README.md").read_text()
    assert "in 1 steps on given and others, to predict what the source predicts." in card


@pytest.mark.parametrize("train", ["transform", "lora", "full"])
def test_passes_of_a_step_add_up(merged, tokens, tmp_path, train):
    """Sequences of unequal length in one pass or several, activations kept or not: the mean is over tokens."""
    more = {"lora_dropout": 0.0, "lora_rank": 4} if train == "lora" else {}
    heal(merged, tokens, tmp_path / "one", options(train, **more))
    more |= {"gradient_checkpointing": True}
    heal(merged, tokens, tmp_path / "several", options(train, batch_size=2, accumulation=2, **more))
    one, several = weights(tmp_path / "one"), weights(tmp_path / "several")
    for name in one:
        torch.testing.assert_close(one[name], several[name], atol=1e-4, rtol=0)


MORE = {
    "transform": {"dtype": "bfloat16"},
    "lora": {"lora_rank": 4, "lora_targets": "all", "objective": "distillation"},
    "full": {"dtype": "bfloat16"},
}


class Killed(BaseException):
    """As a kill: nothing that is caught."""


@pytest.mark.parametrize("train", MORE)
def test_an_interrupted_healing_ends_with_the_same_bits(llama, merged, tokens, tmp_path, train, monkeypatch):
    """Killed twice; dropout, a warm-up, epochs that end between, weight decay and gradient checkpointing are in it."""
    more = {"schedule": "cosine", "warmup": 2, "weight_decay": 0.1, "gradient_checkpointing": True, **MORE[train]}
    original = llama if "objective" in more else None
    given = options(train, steps=5, batch_size=3, accumulation=2, checkpoint_seconds=0.0, **more)
    whole = heal(merged, tokens, tmp_path / "whole", given, original=original)
    batches = TextOrder.batches
    for deadly in (2, 4):

        def kill(self, tokens, step, *sizes, deadly=deadly):
            if step == deadly:
                raise Killed
            return batches(self, tokens, step, *sizes)

        monkeypatch.setattr(TextOrder, "batches", kill)
        with pytest.raises(Killed):
            heal(merged, tokens, tmp_path / "out", given, original=original)
        assert (tmp_path / ".out-healing.safetensors").is_file() and not (tmp_path / "out").exists()
    first = []
    monkeypatch.setattr(TextOrder, "batches", lambda *a: first.append(a[2]) or batches(*a))
    report = heal(merged, tokens, tmp_path / "out", given, original=original)
    assert first == [4] and report == whole
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_healing_is_ignored(merged, tokens, tmp_path, monkeypatch):
    state = tmp_path / ".out-healing.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr("replaceme.transforms.resume.State.remove", lambda self: None)
        heal(merged, tokens, tmp_path / "out", options(checkpoint_seconds=0.0))
    assert state.is_file()
    heal(merged, tokens, tmp_path / "out", options(steps=2))
    heal(merged, tokens, tmp_path / "fresh", options(steps=2))
    assert weights(tmp_path / "out").keys() == weights(tmp_path / "fresh").keys()
    assert not changed(weights(tmp_path / "out"), weights(tmp_path / "fresh")) and not state.exists()


@pytest.mark.parametrize("train", ["transform", "lora", "full"])
def test_the_loss_goes_down(llama, merged, texts, tmp_path, train, checked_here):
    """On texts with a pattern, from text to checkpoint; the report and the records say what was done."""
    patterned = [f"{text} {text}" for text in texts]
    given = options(train, steps=25, learning_rate=0.02 if train != "full" else 0.003, held_out=8)
    report = replaceme.heal(merged, texts=patterned, training=given, out=tmp_path / "out", device="cpu")
    loss = report["loss"]
    assert loss["after"] < loss["before"] - 3 * loss["difference_stderr"]
    assert loss["difference"] == pytest.approx(loss["after"] - loss["before"])
    assert loss["sequences"] == 8 and report["checks"]["logits"]["outcome"] == "passed"
    record = json.loads((tmp_path / "out/replaceme.json").read_text())
    shortened = json.loads((merged / "replaceme.json").read_text())
    assert record["source"]["files"] == replaceme.models.checkpoints.resolve(str(merged)).files
    assert record["original"] == shortened["source"] and record["cut"] == shortened["cut"]
    assert record["healing"]["trained_parameters"] == report["trained_parameters"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"# {llama.name}, 2 blocks shorter and healed" in card and "in 25 steps on texts given" in card


def test_the_result_is_loaded_by_plain_transformers(merged, tokens, tmp_path):
    report = heal(merged, tokens, tmp_path / "out", options(), verify=True)
    assert all(check["outcome"] == "passed" for check in report["checks"].values())
    assert 0 < report["checks"]["logits"]["relative_difference"] < 1e-4


@pytest.mark.parametrize(("full", "devices"), [(False, ["cpu:0"]), (True, ["cpu:0", "cpu"])])
def test_the_result_is_checked_where_it_was_trained(merged, tokens, tmp_path, monkeypatch, full, devices):
    """A device with a name of its own stands for a GPU; its memory may be full once the trained model has run there."""
    asked, question, answer = [], verify.question, verify.Fresh.answer

    def answered(fresh):
        return {"weights": "CUDA out of memory."} if full and len(asked) == 1 else answer(fresh)

    monkeypatch.setattr(verify, "free_memory", lambda device: 2**60)
    monkeypatch.setattr(verify, "question", lambda *given: asked.append(given[-1]) or question(*given))
    monkeypatch.setattr(verify.Fresh, "answer", answered)
    given, output = options(dtype="float32"), Output(tmp_path / "out")
    report = heal_checkpoint(merged, tokens, TEXT, given, output, "cpu:0")
    assert asked == devices and all(check["outcome"] == "passed" for check in report["checks"].values())


def test_a_result_that_is_not_what_was_trained_shows(merged, tokens, tmp_path, monkeypatch, checked_here):
    monkeypatch.setattr("replaceme.healing.heal.Changes", lambda edits, *rest: Changes({}, *rest))
    with pytest.raises(AssertionError, match="not close"):
        heal(merged, tokens, tmp_path / "out", options(), verify=True)


def test_shards_without_what_was_trained_are_copied(sharded, texts, tokens, tmp_path):
    out = tmp_path / "model"
    replaceme.prune(sharded, texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    heal(out, tokens, tmp_path / "out", options())
    before, after = (check_merged(folder)["files"] for folder in (out, tmp_path / "out"))
    trained = open_checkpoint(out).tensors[CARRIER][0]
    assert open_checkpoint(tmp_path / "out").tensors == open_checkpoint(out).tensors
    assert {name for name in before if before[name] != after[name]} == {trained, "README.md"}
    assert (
        "Then the linear map at each place was trained, in 3 steps on given and others."
        in (tmp_path / "out/README.md").read_text()
    )


def test_a_norm_after_the_mlp_stays_and_the_map_acts_before_it(gemma, texts, tokens, tmp_path, checked_here):
    out = tmp_path / "model"
    replaceme.prune(gemma, texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    report = heal(out, tokens, tmp_path / "out", options(), verify=True)
    assert changed(weights(out), weights(tmp_path / "out")) == {CARRIER}
    assert report["checks"]["logits"]["outcome"] == "passed" and report["trained_parameters"] == 256


def test_tied_weights_are_trained_once(gemma, texts, tokens, tmp_path, checked_here):
    out = tmp_path / "model"
    replaceme.prune(gemma, texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    report = heal(out, tokens, tmp_path / "out", options("full"), verify=True)
    assert changed(weights(out), weights(tmp_path / "out")) == weights(out).keys()
    assert report["trained_parameters"] == sum(tensor.numel() for tensor in weights(out).values())


# ---- errors


def test_bad_input_is_one_line(llama, merged, tokens, tmp_path, refuses):
    with refuses(f"{llama}: no replaceme.json"):
        heal(llama, tokens, tmp_path / "out", options())
    taught = options(objective="distillation")
    with refuses(f"{merged}: made from {llama.name}, which is not found", "name the original model by `--original`"):
        heal(merged, tokens, tmp_path / "out", taught)
    with refuses(f"{merged}: not the model that {merged} was made from"):
        heal(merged, tokens, tmp_path / "out", taught, original=merged)
    with refuses("objective text takes no original model; drop it"):
        heal(merged, tokens, tmp_path / "out", options(), original=llama)
    with refuses("20 sequences, of which 20 are held out"):
        heal(merged, tokens, tmp_path / "out", options(held_out=20))
    with refuses("would be overwritten"):
        heal(merged, tokens, merged, options())
    with refuses("sequences of 129 tokens, but the model takes 128"):
        heal(
            merged, Tokens(torch.ones(8, 129, dtype=torch.int64), torch.ones(8, 129, dtype=torch.bool)), "x", options()
        )
    single = Tokens(torch.full((9, 1), 7), torch.ones(9, 1, dtype=torch.bool))
    with refuses("loss: no sequence of two tokens or more"):
        heal(merged, single, tmp_path / "out", options())
    with refuses("healing: the loss of step", "lower `learning_rate`"):
        heal(merged, tokens, tmp_path / "out", options("full", learning_rate=1e30))
    assert not (tmp_path / "out").exists()


def test_layers_of_their_own_are_refused(llama, texts, tokens, tmp_path, refuses):
    out = tmp_path / "model"
    replaceme.prune(llama, texts=texts, cut=CUT, fit=FitConfig(placement="block"), out=out, device="cpu", verify=False)
    with refuses("already made smaller, with layers of its own"):
        heal(out, tokens, tmp_path / "out", options())


def test_the_step(llama, merged, tokens, tmp_path, capsys):
    tokens.save(tmp_path / "tokens.safetensors", TEXT)
    words = [
        "heal",
        str(merged),
        str(tmp_path / "tokens.safetensors"),
        "--steps=2",
        "--learning-rate=0.01",
        "--held-out=4",
    ]
    out = ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "healing.json"), "--device=cpu", "--no-verify"]
    taught = ["--objective=distillation", f"--original={llama}"]
    assert main([*words, *out, "--train=transform", *taught]) == 0
    report = json.loads((tmp_path / "healing.json").read_text())
    assert report["kl"].keys() == {"before", "after"}
    assert [point["step"] for point in report["curve"]] == [1, 2] and report["checks"] is None
    assert main(["figure", "healing", str(tmp_path / "healing.json"), "--out", str(tmp_path / "healing.svg")]) == 0
    capsys.readouterr()
    assert main([*words, *out, "--train=full", "--lora-rank=3"]) == 1
    assert "options: top level: train full takes no lora_rank; drop it" in capsys.readouterr().err


def test_a_mixture_of_experts_takes_a_map_but_no_adapters(tmp_path, texts, tokens, checked_here):
    from conftest import SIZES, tiny_tokenizer
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    out = tmp_path / "model"
    replaceme.prune(tmp_path / "whole", texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    report = heal(out, tokens, tmp_path / "out", options(), verify=True)
    assert report["checks"]["logits"]["outcome"] == "passed"
    assert changed(weights(out), weights(tmp_path / "out")) == set(open_checkpoint(out).folded(2))
    for train in ("lora", "full"):
        with pytest.raises(ReplaceMeError, match="use train transform"):
            heal(out, tokens, tmp_path / "other", options(train))
