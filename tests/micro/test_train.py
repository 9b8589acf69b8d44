"""The training script: a step learns, growth keeps what it should, and the script runs on a CPU."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from replaceme.core.errors import ReplaceMeError
from replaceme.micro import corpus, growth, optimise, tokenizer, train

TINY = train.Recipe(
    hidden=32,
    intermediate=48,
    heads=2,
    growth=(2, 1),
    batch=4,
    sequence=32,
    corpus_tokens=4000,
    shallow=train.Phase(steps=30, rate=3e-3, warmup=5, decay=0.0),
    deep=train.Phase(steps=3, rate=1e-3, warmup=1, decay=0.7),
)


@pytest.fixture(scope="module", autouse=True)
def small_vocabulary():
    """A vocabulary of few documents: the full one takes seconds."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer, "_DOCUMENTS", 300)
    yield
    patch.undo()


def tiny_llama(blocks):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=blocks, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_growth_by_one_changes_nothing():
    model = tiny_llama(3)
    ids = torch.arange(20)[None]
    assert torch.equal(growth.grow(model, [1, 1, 1]).eval()(ids).logits, model(ids).logits)


def test_growth_shares_the_step():
    model = tiny_llama(2)
    grown = growth.grow(model, [3, 1])
    assert grown.config.num_hidden_layers == 4 and model.config.num_hidden_layers == 2
    for number, (source, factor) in enumerate([(0, 3), (0, 3), (0, 3), (1, 1)]):
        old, new = model.model.layers[source], grown.model.layers[number]
        assert torch.allclose(new.mlp.down_proj.weight * factor, old.mlp.down_proj.weight)
        assert torch.allclose(new.self_attn.o_proj.weight * factor, old.self_attn.o_proj.weight)
        assert torch.equal(new.mlp.up_proj.weight, old.mlp.up_proj.weight)


def test_growth_of_small_steps_approaches_the_block():
    """A block of tiny output is nearly the sum of its parts, ever more so in the limit."""
    model = tiny_llama(2)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(1e-3)
        layer.self_attn.o_proj.weight.data.mul_(1e-3)
    ids = torch.arange(20)[None]
    difference = (growth.grow(model, [4, 4]).eval()(ids).logits - model(ids).logits).abs().max()
    assert 0 < difference < 1e-3 * model(ids).logits.abs().max()


@pytest.mark.parametrize("factors", [[1], [1, 0], [1, 1, 1]])
def test_growth_refuses_bad_factors(factors):
    with pytest.raises(ValueError, match="factors"):
        growth.grow(tiny_llama(2), factors)


def test_step_computes_the_models_own_loss():
    recipe = replace(TINY, growth=(1, 1))
    model = train.initial_model(recipe, 60)
    step = optimise.Step(model, recipe.batch, recipe.sequence, recipe.weight_decay)
    rows = torch.randint(4, 60, (recipe.batch, recipe.sequence + 1))
    expected = model(input_ids=rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(expected.flatten(0, 1), rows[:, 1:].flatten())
    assert step(rows, 0.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rates():
    phase = train.Phase(steps=100, rate=1.0, warmup=10, decay=0.5)
    assert [phase.rate_at(step) for step in (0, 9, 49, 50, 75, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.02])
    assert train.Phase(steps=100, rate=1.0, warmup=1, decay=0.0).rate_at(99) == 1


def test_corpus_does_not_depend_on_processes(monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_TOKENS", 700)
    words = tokenizer.vocabulary()
    one = corpus.training_tokens(words, 2000, seed=3, processes=1)
    two = corpus.training_tokens(words, 2000, seed=3, processes=2)
    assert len(one) == 2000 and (one == two).all()
    assert one[0] == tokenizer.START


def test_training_learns_and_repeats():
    first, _, facts = train.train(TINY, "cpu", processes=1)
    second, _, _ = train.train(TINY, "cpu", processes=1)
    assert facts["loss"]["shallow"] < 6.5  # ln(vocabulary) is about 6.8
    assert facts["tokens"] == {"shallow": 30 * 4 * 32, "deep": 3 * 4 * 32}
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_script_writes_a_plain_folder(tmp_path, capsys):
    folder = tmp_path / "model"
    arguments = ["--steps", "2", "--batch", "1", "--device", "cpu", "--processes", "1", "--seed", "5"]
    train.main(["--out", str(folder), *arguments])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and len(model.model.layers) == sum(train.Recipe.growth)
    assert AutoTokenizer.from_pretrained(folder)("Tom")["input_ids"][0] == tokenizer.START
    assert json.loads((folder / "training.json").read_text())["recipe"]["seed"] == 5
    assert '"hardware": "CPU"' in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without CUDA")
def test_missing_gpu_is_one_clear_line(tmp_path):
    with pytest.raises(ReplaceMeError, match="--device cpu"):
        train.main(["--out", str(tmp_path / "model"), "--device", "cuda"])


def test_world_imports_without_torch():
    code = "import sys, replaceme.micro.world, replaceme.micro.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
