"""Healing: what is trained and nothing else, by hand; adapters merged; the same bits after an interruption; errors."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

import replaceme
from replaceme.capture import model_inputs
from replaceme.checkpoints import open_checkpoint, read_config
from replaceme.cli import main
from replaceme.config import CutConfig, FitConfig, TrainingConfig
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError
from replaceme.healing import Output, heal_checkpoint
from replaceme.healing.heal import carriers_of, curve_of
from replaceme.healing.loop import Order, rate
from replaceme.healing.parameters import trainable
from replaceme.loading import load_causal_model
from replaceme.reload import fixed_tokens
from replaceme.shards import Changes

TEXT = {"dataset": "given"}
CUT = CutConfig(blocks=2, start=3)
CARRIER = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def merged(llama, texts, tmp_path_factory):
    """The tiny Llama without blocks 3 and 4; its carrier is block 2."""
    out = tmp_path_factory.mktemp("merged") / "model"
    replaceme.prune(llama, texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    return out


@pytest.fixture(scope="module")
def tokens(make_tokens):
    return make_tokens(samples=20)


def options(train="transform", **more):
    given = {"steps": 3, "learning_rate": 0.01, "batch_size": 4, "held_out": 4, "schedule": "constant"}
    return TrainingConfig(train=train, **{**given, **more})


def heal(folder, tokens, out, given, **more):
    return heal_checkpoint(folder, tokens, TEXT, given, Output(out, **{"verify": False, **more}), "cpu")


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def checked_here(monkeypatch):
    """The comparison with what was trained in this process, where a fresh one for each test would take too long."""

    def compare(expected, record, edited, folder):
        tokens = fixed_tokens(read_config(folder))
        model = load_causal_model(folder, "float32", "cpu")
        with torch.no_grad():
            torch.testing.assert_close(model(**model_inputs(model, tokens)).logits, expected(tokens))
        return {"model": str(folder), "checks": {"logits": {"outcome": "passed"}}}

    monkeypatch.setattr("replaceme.healing.heal.verify_against", compare)


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def loss_by_hand(model, batch):
    """The mean over all tokens of a batch that follow one, each sequence on its own and without its padding."""
    losses = [
        torch.nn.functional.cross_entropy(model(ids[None, mask]).logits[0, :-1], ids[mask][1:], reduction="sum")
        for ids, mask in zip(batch.input_ids, batch.mask, strict=True)
    ]
    return sum(losses) / sum(int(mask.sum()) - 1 for mask in batch.mask)


def adam_by_hand(gradient, learning_rate):
    """The first step of Adam, after the gradient was clipped to a norm of 1."""
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


@pytest.mark.parametrize(("targets", "part"), [("mlp", ".mlp."), ("attention", ".self_attn."), ("all", ".layers.")])
def test_merged_adapters_have_the_logits_of_the_adapters(merged, tokens, targets, part, tmp_path):
    given = options("lora", lora_rank=3, lora_alpha=6, lora_targets=targets)
    checkpoint, model = open_checkpoint(merged), load_causal_model(merged, "float32", "cpu")
    adapters = trainable(model, checkpoint, given, [2])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
        expected = model(tokens.input_ids).logits
    plain = load_causal_model(merged, "float32", "cpu")
    untouched = plain(tokens.input_ids).logits
    edits = adapters.edits()
    assert edits.keys() == {n for n in checkpoint.tensors if part in n and n.endswith("proj.weight")}
    plain.load_state_dict({name: edit(checkpoint.tensor(name)) for name, edit in edits.items()}, strict=False)
    torch.testing.assert_close(plain(tokens.input_ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - untouched).abs().max() > 0.1


MORE = {
    "transform": {"dtype": "bfloat16"},
    "lora": {"lora_rank": 4, "lora_targets": "all"},
    "full": {"dtype": "bfloat16"},
}


class Killed(BaseException):
    """As a kill: nothing that is caught."""


@pytest.mark.parametrize("train", MORE)
def test_an_interrupted_healing_ends_with_the_same_bits(merged, tokens, tmp_path, train, monkeypatch):
    """Killed twice; dropout, a warm-up, epochs that end between, weight decay and gradient checkpointing are in it."""
    more = {"schedule": "cosine", "warmup": 2, "weight_decay": 0.1, "gradient_checkpointing": True, **MORE[train]}
    given = options(train, steps=7, batch_size=3, accumulation=2, checkpoint_seconds=0.0, **more)
    whole = heal(merged, tokens, tmp_path / "whole", given)
    batches = Order.batches
    for deadly in (2, 5):

        def kill(self, tokens, step, options, deadly=deadly):
            if step == deadly:
                raise Killed
            return batches(self, tokens, step, options)

        monkeypatch.setattr(Order, "batches", kill)
        with pytest.raises(Killed):
            heal(merged, tokens, tmp_path / "out", given)
        assert (tmp_path / ".out-healing.safetensors").is_file() and not (tmp_path / "out").exists()
    first = []
    monkeypatch.setattr(Order, "batches", lambda *a: first.append(a[2]) or batches(*a))
    report = heal(merged, tokens, tmp_path / "out", given)
    assert first == [5, 6] and report == whole
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
    assert record["source"]["files"] == replaceme.checkpoints.resolve(str(merged))["files"]
    assert record["original"] == shortened["source"] and record["cut"] == shortened["cut"]
    assert record["healing"]["trained_parameters"] == report["trained_parameters"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"# {llama}, 2 blocks shorter and healed" in card and "in 25 steps on texts given" in card


def test_the_result_is_loaded_by_plain_transformers(merged, tokens, tmp_path):
    report = heal(merged, tokens, tmp_path / "out", options(), verify=True)
    assert all(check["outcome"] == "passed" for check in report["checks"].values())
    assert 0 < report["checks"]["logits"]["relative_difference"] < 1e-4


def test_a_result_that_is_not_what_was_trained_shows(merged, tokens, tmp_path, monkeypatch, checked_here):
    monkeypatch.setattr("replaceme.healing.heal.Changes", lambda edits, *rest: Changes({}, *rest))
    with pytest.raises(AssertionError, match="not close"):
        heal(merged, tokens, tmp_path / "out", options(), verify=True)


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


def test_trained_in_bfloat16_small_steps_are_kept(make_llama, texts, tokens, tmp_path):
    """A step of 1e-4 of a weight vanishes in bfloat16, a hundred of them do not: the parameters are float32."""
    folder, out = make_llama(dtype="bfloat16"), tmp_path / "model"
    replaceme.prune(folder, texts=texts, cut=CUT, out=out, device="cpu", verify=False)
    checkpoint, model = open_checkpoint(out), load_causal_model(out, "bfloat16", "cpu")
    trained = trainable(model, checkpoint, options("full", dtype="bfloat16"), [2])
    before = {name: follower.detach().clone() for name, follower in trained.followers.items()}
    with torch.no_grad():
        for _ in range(100):
            for parameter in trained.parameters.values():
                parameter.mul_(1 + 1e-4)
            trained.follow()
    for name, follower in trained.followers.items():
        torch.testing.assert_close(follower.double(), before[name].double() * 1.01, rtol=2**-8, atol=0)


# ---- parts


def test_carriers_are_numbered_after_the_cut():
    assert carriers_of({"groups": [[3, 5]]}) == [2]
    assert carriers_of({"groups": [[2, 4], [6, 9], [10, 11]]}) == [1, 3, 4]


def test_every_sequence_once_an_epoch(tokens):
    given = options(batch_size=3)
    order = Order(len(tokens), seed=4)
    seen = [
        tuple(ids.tolist()) for step in range(20) for b in order.batches(tokens, step, given) for ids in b.input_ids
    ]
    lengths = [len([i for i in ids if i]) for ids in seen]
    whole = sorted(int(mask.sum()) for mask in tokens.mask)
    epochs = [sorted(lengths[k : k + 20]) for k in (0, 20, 40)]
    assert epochs == [whole] * 3 and len({tuple(lengths[k : k + 20]) for k in (0, 20, 40)}) == 3
    again = Order(len(tokens), seed=4)
    assert torch.equal(again.batches(tokens, 9, given)[0].input_ids, order.batches(tokens, 9, given)[0].input_ids)


def test_schedules():
    steps = range(10)
    assert [rate(k, options(steps=10)) for k in steps] == [1.0] * 10
    line = [rate(k, options(steps=10, schedule="linear", warmup=2)) for k in steps]
    assert line == pytest.approx([0.5, 1.0, *(1 - k / 8 for k in range(8))])
    half = [rate(k, options(steps=10, schedule="cosine")) for k in steps]
    assert half[0] == 1 and half[5] == pytest.approx(0.5) and all(a > b > 0 for a, b in pairwise(half))


def test_long_curves_are_thinned():
    curve = curve_of([float(k) for k in range(1201)], options(steps=1201))
    assert len(curve) == 401 and curve[0] == {"step": 3, "loss": 1.0, "learning_rate": 0.01}
    assert curve[-1]["step"] == 1201 and curve[-1]["loss"] == 1200.0


# ---- errors


def test_bad_input_is_one_line(llama, merged, tokens, tmp_path, refuses):
    with refuses(f"{llama}: no replaceme.json"):
        heal(llama, tokens, tmp_path / "out", options())
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
    with refuses("already shortened, with linear layers of their own"):
        heal(out, tokens, tmp_path / "out", options())


def test_the_step(merged, tokens, tmp_path, capsys):
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
    assert main([*words, *out, "--train=transform"]) == 0
    report = json.loads((tmp_path / "healing.json").read_text())
    assert [point["step"] for point in report["curve"]] == [1, 2] and report["checks"] is None
    assert main(["figure", "healing", str(tmp_path / "healing.json"), "--out", str(tmp_path / "healing.svg")]) == 0
    capsys.readouterr()
    assert main([*words, *out, "--train=full", "--lora-rank=3"]) == 1
    assert "options: top level: train full takes no lora_rank; drop it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [({"warmup": 3}, "warmup 3 leaves nothing"), ({"clip": 0.0}, "clip"), ({"train": "qlora"}, "'transform', 'lora'")],
    ids=str,
)
def test_options_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        options(**given)


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
