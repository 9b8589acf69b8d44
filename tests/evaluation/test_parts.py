"""Costs of a model's parts: operations and bytes by hand, times by a clock that is set, kinds of blocks apart."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from replaceme.cli import main
from replaceme.config.evaluations import SpeedConfig
from replaceme.core.cut_record import Cut
from replaceme.evaluation import parts
from replaceme.evaluation.parts import part_costs
from replaceme.models.cache import cache_bytes, cache_bytes_per_token
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.loading import ON_CPU, load_causal_model
from replaceme.models.part_costs import PartCosts
from replaceme.probing.describe import tiny_of
from replaceme.probing.model import build

TOKENS = 16
OPTIONS = SpeedConfig(prompt_tokens=TOKENS, new_tokens=2, repeats=1, warmup=0)


def test_operations_are_those_of_the_matrices(llama):
    """Two for each weight and token, and for each channel of each query with each key, twice; embeddings are read."""
    found = part_costs(resolve(str(llama)), "flops", OPTIONS, ON_CPU)
    attention = 2 * TOKENS * (2 * 16 * 16 + 2 * 16 * 8) + 2 * 2 * TOKENS * TOKENS * 16
    mlp = 2 * TOKENS * 3 * 16 * 24
    assert found.attentions == [attention] * 6 and found.mlps == [mlp] * 6
    assert found.blocks == [attention + mlp] * 6
    assert found.total == 6 * (attention + mlp) + 2 * 16 * 66, "and the head's, of the last token"


def test_operations_of_experts_are_those_of_the_chosen_ones(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path)
    found = part_costs(resolve(str(tmp_path)), "flops", OPTIONS, ON_CPU)
    assert found.mlps == [2 * TOKENS * (2 * 3 * 16 * 24 + 4 * 16)] * 3, "two of four experts, and the router"


def test_cache_is_that_of_heads_until_windows_are_full(gemma, llama):
    """A window of 8 keeps 7 of 16 tokens; blocks 2 and 5 attend to all; of MLPs nothing is kept."""
    one = 2 * 1 * 8 * 4  # keys and values, a head of 8 channels, float32
    found = part_costs(resolve(str(gemma)), "cache", OPTIONS, ON_CPU)
    each = [16 if k in (2, 5) else 7 for k in range(6)]
    assert found.blocks == found.attentions == [one * tokens for tokens in each]
    assert found.mlps == [0] * 6 and found.total == one * sum(each)
    assert cache_bytes_per_token(load_causal_model(llama, "bfloat16", "cpu"), "float32") == 6 * one


@pytest.mark.parametrize(("model_type", "blocks"), [
    ("mamba", [48 * (8 + 4) * 4] * 6),  # channels x (state + width of the convolution), put out as `cache_params`
    # convolution and recurrence, kept by the modules themselves, and seven tokens of a window in a cache that is given
    ("recurrent_gemma", [32 * 3 * 4 + 32 * 4] * 2 + [2 * 7 * 32 * 4]),
    ("minimax", [2 * TOKENS * 16 * 4, 4 * 8 * 8 * 4]),  # keys and values, and states beside the layers of the cache
])  # fmt: skip
def test_states_count_wherever_a_model_keeps_them(tmp_path, model_type, blocks):
    build(tiny_of(AutoConfig.for_model(model_type).to_dict(), model_type)).save_pretrained(tmp_path)
    found = part_costs(resolve(str(tmp_path)), "cache", OPTIONS, ON_CPU)
    assert found.blocks == blocks * (6 // len(blocks)) and found.total == sum(found.blocks)


def test_a_cache_within_a_cache_counts_once():
    """As that of a decoder of an architecture that also has an encoder."""
    layer = SimpleNamespace(keys=torch.zeros(1, 2, 3, 4), values=torch.zeros(1, 2, 3, 4))
    cache = SimpleNamespace(self_attention_cache=SimpleNamespace(layers=[layer, layer]), is_updated={0: False})

    def model(ids, use_cache):
        return SimpleNamespace(past_key_values=cache)

    model.parameters = lambda: iter([torch.zeros(1)])
    assert cache_bytes(model, torch.zeros(1, 3), "float16") == 2 * 2 * 3 * 4 * 2


def test_a_linear_attention_has_a_state_but_nothing_for_a_token():
    def model(ids, use_cache):
        states = {
            "conv_states": {0: torch.zeros(1, 4, 2)},
            "recurrent_states": {0: torch.zeros(1, 2, 2)},
            "device": "cpu",
        }
        layers = [SimpleNamespace(**states), SimpleNamespace(keys=torch.zeros(1, 3, ids.shape[1], 5), values=None)]
        return SimpleNamespace(past_key_values=SimpleNamespace(layers=layers))

    model.parameters = lambda: iter([torch.zeros(1, dtype=torch.bfloat16)])
    assert cache_bytes_per_token(model, "bfloat16") == 3 * 5 * 4, "what is float32 beside bfloat16 stays so"


def test_a_class_that_runs_without_a_cache_alone_has_no_number():
    """As Blenderbot's decoder, whose cache has as many layers as its encoder: its tables are made all the same."""

    def model(ids, use_cache):
        return [][use_cache]

    model.parameters = lambda: iter([torch.zeros(1)])
    assert cache_bytes_per_token(model, "float32") is None


@pytest.mark.parametrize(("unit", "expected"), [("prefill", (3, 2)), ("decode", (7, 5)), ("latency", (10, 7))])
def test_times_are_the_difference_that_parts_make(gemma, monkeypatch, unit, expected):
    """A clock for which a pass takes (3, 7) for each attention, (2, 5) for each MLP and (9, 9) else."""
    attention, mlp = expected

    def clock(model, load):
        assert load.new_tokens == (0 if unit == "prefill" else 2)
        counts = [
            sum(
                type(getattr(block, name)).__name__ != "Nothing" and "forward" not in vars(block)
                for block in model.model.layers
            )
            for name in ("self_attn", "mlp")
        ]
        model(load.prompt)  # runs in every state
        return tuple(a * counts[0] + m * counts[1] + 9 for a, m in ((3, 2), (7, 5)))

    monkeypatch.setattr(parts, "one_repeat", clock)
    found = part_costs(resolve(str(gemma)), unit, OPTIONS, ON_CPU)
    assert found.attentions == [attention] * 6 and found.mlps == [mlp] * 6
    assert found.blocks == [attention + mlp] * 6
    assert found.total == 6 * (attention + mlp) + (18 if unit == "latency" else 9)
    assert found.measured["prompt_tokens"] == TOKENS and "cores" in found.measured["machine"]
    assert found.measured["clock"] == "wall"


@pytest.mark.parametrize("unit", ["flops", "cache", "prefill"])
def test_a_unit_of_the_prompt_alone_asks_for_no_room_after_it(llama, monkeypatch, unit):
    """The model takes 128 tokens."""
    shrinking = itertools.count(100, -1)  # less time with every part that is left out
    monkeypatch.setattr(parts, "one_repeat", lambda model, load: (model(load.prompt) and next(shrinking), 0))
    options = SpeedConfig(prompt_tokens=128, new_tokens=2, repeats=1, warmup=0)
    found = part_costs(resolve(str(llama)), unit, options, ON_CPU)
    assert (found.measured["prompt_tokens"], "new_tokens" in found.measured) == (128, False)
    assert parts.usual_lengths(read_config(llama), unit, "x").prompt_tokens == 128


@pytest.mark.parametrize("unit", ["decode", "latency"])
def test_new_tokens_need_room_after_the_prompt(llama, unit, refuses):
    with refuses("prompt and new tokens are 130 together, the model takes 128"):
        part_costs(resolve(str(llama)), unit, SpeedConfig(prompt_tokens=128, new_tokens=2), ON_CPU)
    lengths = parts.usual_lengths(read_config(llama), unit, "x")
    assert lengths.prompt_tokens + lengths.new_tokens == 128


@pytest.mark.parametrize(("unit", "asked"), [("cache", 0), ("flops", 0), ("prefill", 1)])
def test_what_is_counted_asks_for_no_device(llama, tmp_path, monkeypatch, unit, asked):
    devices = []
    monkeypatch.setattr("replaceme.steps.parts.pick_device", lambda device: devices.append(device) or "cpu")
    short = ["--prompt-tokens", "8", "--repeats", "1", "--warmup", "0"]
    command = ["parts", str(llama), "--of", unit, *short, "--device", "cuda"]
    assert main([*command, "--out", str(tmp_path / "costs.json")]) == 0
    assert devices == ["cuda"] * asked


def test_a_model_is_whole_again_and_noise_is_no_gain(llama, monkeypatch, caplog):
    models = []
    times = iter([4, 3, 5, 6])  # of the whole model, and without blocks, attentions, MLPs
    monkeypatch.setattr(parts, "one_repeat", lambda model, load: models.append(model) or (next(times), 0))
    found = part_costs(resolve(str(llama)), "prefill", OPTIONS, ON_CPU)
    assert found.blocks == [0.25] * 6 and found.attentions == found.mlps == [0.0] * 6
    assert caplog.text.count("is the machine busy?") == 2
    whole, ids = load_causal_model(llama, "float32", "cpu"), torch.arange(6, 14)[None]
    assert torch.equal(models[0](ids).logits, whole(ids).logits)


def test_blocks_that_cost_no_time_are_no_result(llama, monkeypatch, refuses):
    """It would be kept, and no cut could be chosen from it."""
    times = iter(range(1, 9))  # every pass takes longer than the one before
    monkeypatch.setattr(parts, "one_repeat", lambda model, load: (next(times), 0))
    with refuses("prefill: the model takes as long without its blocks; raise `repeats`, or try later"):
        part_costs(resolve(str(llama)), "prefill", OPTIONS, ON_CPU)


@pytest.mark.parametrize("unit", ["flops", "cache"])
def test_a_token_for_padding_is_none_of_what_is_counted(tmp_path, unit):
    """transformers looks for it among the ids of some models, which have no values where a model has no weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
    for name, pad in (("with", 0), ("without", None)):
        GPT2LMHeadModel(GPT2Config(**sizes, pad_token_id=pad)).save_pretrained(tmp_path / name)
    one, other = (part_costs(resolve(str(tmp_path / name)), unit, OPTIONS, ON_CPU) for name in ("with", "without"))
    assert one.blocks == other.blocks and one.total == other.total


def test_a_slow_while_slows_all_alike(llama, monkeypatch):
    """A machine on which the second round takes ten times as long: the least of each is of another one."""
    # of the whole model, and without blocks, attentions, MLPs
    rounds = iter([5.0] * 4 + [30.0, 20.0, 21.0, 22.0] + [3.0, 2.0, 2.1, 2.2])
    monkeypatch.setattr(parts, "one_repeat", lambda model, load: (next(rounds), 0))
    found = part_costs(resolve(str(llama)), "prefill", SpeedConfig(prompt_tokens=TOKENS, repeats=2, warmup=1), ON_CPU)
    assert found.total == 3.0
    each = [costs[0] for costs in (found.blocks, found.attentions, found.mlps)]
    assert each == pytest.approx([1.0 / 4, 0.9 / 4, 0.8 / 4])


def test_files_are_of_one_model(llama, gemma, tmp_path, refuses):
    record, path = resolve(str(llama)), tmp_path / "cache.json"
    found = part_costs(record, "cache", OPTIONS, ON_CPU)
    found.save(path)
    assert PartCosts.load(path) == record.with_costs(path, "cache").costs == found
    with refuses(f"{path}: made from another model than {gemma}"):
        resolve(str(gemma)).with_costs(path, "cache")
    path.write_text("{}")
    with refuses("not the costs of a model's parts", "replaceme parts"):
        record.with_costs(path, "cache")


def test_a_cut_by_hand_from_the_costs_in_a_file(llama, tmp_path, caplog, capsys):
    """As the steps do it: three tenths of the cache of six blocks are nearest to that of two."""
    caplog.set_level("INFO")
    costs, cut = tmp_path / "cache.json", tmp_path / "cut.json"
    words = [str(llama), "--of", "cache"]
    assert main(["parts", *words, "--prompt-tokens", "8", "--new-tokens", "2", "--out", str(costs)]) == 0
    assert main(["cut", *words, "--ratio", "0.3", "--start", "2", "--costs", str(costs), "--out", str(cut)]) == 0
    found = Cut.load(cut)
    assert found.groups == [(2, 4)] and found.budget["saved"] == pytest.approx(1 / 3)
    assert found.budget["measured"] == {"prompt_tokens": 8, "batch_size": 1, "dtype": "float32"}
    assert "ratio 0.3 of cache: 2 of 6 blocks, [2, 4), which saves 0.333 of the model's" in caplog.text
    assert main(["cut", str(llama), "--ratio", "0.3", "--start", "2", "--costs", str(costs), "--out", str(cut)]) == 1
    assert "costs are for a ratio of another unit than parameters" in capsys.readouterr().err
