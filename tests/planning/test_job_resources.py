"""What jobs ask a scheduler for grows with the model, the text and the cut, and needs no torch and no network."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from replaceme.config.calibrations import CalibrationConfig, ModelConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.evaluations import EvaluationConfig, ZeroShotConfig
from replaceme.config.fits import FitConfig, fit_config
from replaceme.config.schema import load
from replaceme.models.checkpoints import resolve
from replaceme.planning.job_resources import BASE, START, TABLE, UNKNOWN, Work, needs, outline_for
from replaceme.planning.job_work import IMAGE, WORK, entry_of, length, rule_of_fit, tokens_of, work_of
from replaceme.planning.outline import Outline

ROOT = Path(__file__).resolve().parents[2]
CLIP = {"model_type": "clip", "dtype": "float32", "vision_config": {"image_size": 336, "hidden_size": 1024}}
CONFIG = {"model_type": "llama", "vocab_size": 32_000, "intermediate_size": 11_008, "dtype": "bfloat16"}
NAMES = {
    "model": "micro", "calibration": "micro", "cut": "n6", "fit": "ls", "evaluation": "micro", "kind": "mlp",
    "shard": "0", "shards": "2",
}  # fmt: skip


def of_size(billions):
    parameters = round(billions * 1e9)
    return Outline("x", CONFIG, 32, 4096, parameters, [parameters // 40] * 32, 2 * parameters)


@pytest.fixture(scope="module")
def micro():
    return load(ROOT / "config.yaml")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rule", sorted(TABLE))
def test_more_of_anything_never_asks_for_less(rule, device):
    work = Work(tokens=1e6, positions=8192, text=1e6, width=4096, squares=3)
    before = needs(rule, of_size(7), work, device)
    assert before.mem_mb >= BASE / 1e6 and before.runtime >= START / 60
    more = [replace(work, tokens=4e6), replace(work, width=11_008), replace(work, squares=9), replace(work, groups=4)]
    asked = [needs(rule, of_size(7), one, device) for one in more] + [needs(rule, of_size(70), work, device)]
    assert all(one.mem_mb >= before.mem_mb and one.runtime >= before.runtime for one in asked)
    for held in (replace(work, pixels=1e9), replace(work, waiting=2e9)):
        assert needs(rule, of_size(7), held, device).mem_mb >= before.mem_mb + 3900
    need = TABLE[rule]
    if need.copies:
        assert asked[-1].mem_mb > 5 * before.mem_mb
    if need.disk or need.passes:
        assert asked[-1].runtime > before.runtime
    if need.squares:
        assert asked[1].mem_mb > before.mem_mb and asked[3].mem_mb > before.mem_mb


# beside those of the rules' own names
ENTRIES = {"transform_by_passes", "transform_end_to_end", "heal_distilled", "recycle_removed", "parts_counted"}


def test_the_numbers_of_a_7b_model():
    """By hand: 1.5 GB, the weights once, four matrices [4096, 4096] of 8 bytes; a shard of 8 million tokens in 4."""
    work = Work(tokens=2e6, positions=8192, width=4096)
    on_gpu = needs("gram", of_size(7), work, "cuda")
    assert on_gpu.mem_mb == pytest.approx(1500 + 14_000 + 4 * 8 * 4096**2 / 1e6, abs=100)
    assert on_gpu.runtime == pytest.approx((300 + 3 * (2 * 7e9 * 2e6 * 2 / 1e14 + 14e9 / 1e8)) / 60, abs=1)
    on_cpu = needs("gram", of_size(7), work, "cpu")
    states = 4 * 8192 * 8 * 4096 / 1e6
    assert on_cpu.mem_mb == pytest.approx(1500 + 1.25 * 28_000 + 4 * 8 * 4096**2 / 1e6 + states, abs=100)
    assert needs("gram", of_size(7), replace(work, dtype="bfloat16"), "cpu").mem_mb < on_cpu.mem_mb - 17_000
    assert needs("merge", of_size(7), Work(), "cpu").mem_mb == pytest.approx(1500 + 10_000 + 537, abs=100)  # a file
    # what runs on the CPU where a GPU lacks the room
    assert needs("verify", of_size(7), work, "cuda") == needs("verify", of_size(7), work, "cpu")


def test_work_follows_the_config(micro):
    outline = of_size(7)
    assert {rule for rule in TABLE if rule not in WORK} == {"dequantise", "model", "merge", *ENTRIES}
    assert tokens_of(micro, "micro") == 200 * 256 and length(micro, "micro") == 256
    whole, shard = (work_of("gram", micro, {**NAMES, "shards": shards}, outline).tokens for shards in ("1", "4"))
    assert whole == 4 * shard == 200 * 256
    widths = {kind: work_of("sum", micro, {**NAMES, "kind": kind}, outline).width for kind in ("mlp", "inputs")}
    assert widths == {"mlp": 4096, "inputs": 11_008 + 4096}
    of_fit = {name: NAMES[name] for name in ("model", "calibration", "cut", "fit")}
    recycled = work_of("transform", micro, {**of_fit, "fit": "recycled-cosine"}, outline)
    assert recycled.width == 11_008 and recycled.tokens == 200 * 256  # a cosine is fitted over rows
    assert work_of("transform", micro, of_fit, outline).tokens == 0  # least squares on sums
    assert work_of("candidates", micro, NAMES, outline).squares == 26 + 2 * 26  # starts 1 to 26
    assert rule_of_fit(micro, NAMES) == "transform"
    fits = {**micro.fits, "kl": FitConfig(objective="kl", kl_steps=10, kl_sequences=2)}
    fits["flat"] = fit_config(method="flattengpt", shortlist=0.5)
    trained, of_kl = micro.model_copy(update={"fits": fits}), {**of_fit, "fit": "kl"}
    assert rule_of_fit(trained, of_kl) == "transform_end_to_end"
    assert work_of("transform", trained, of_kl, outline).tokens == 200 * 256 + 10 * 2 * 256
    flattened = work_of("transform", trained, {**of_fit, "fit": "flat"}, outline)
    assert (flattened.width, flattened.waiting) == (11_008 * 3 // 2, 2 * 200 * 256 * 4096)
    kind = micro.fits["recycled-cosine"].regression.kind
    widths = {rule: work_of(rule, micro, {**NAMES, "kind": kind}, outline).width for rule in ("sum", "recycle")}
    counted, timed = (entry_of("parts", micro, {**NAMES, "unit": unit}) for unit in ("flops", "decode"))
    assert (counted, timed) == ("parts_counted", "parts"), "what is counted loads no weights"
    assert widths == {"sum": 11_008, "recycle": 11_008 + 4096}, "chosen from wider sums than are taken afterwards"
    removed = FitConfig(placement="down_proj", recycle=0.25, recycle_from="removed")
    exchanging, of_kind = micro.model_copy(update={"fits": {"x": removed}}), {**NAMES, "kind": removed.regression.kind}
    del of_kind["shard"]
    assert entry_of("recycle", exchanging, of_kind) == "recycle_removed"
    chosen = work_of("recycle", exchanging, of_kind, outline)
    assert (chosen.width, chosen.tokens) == (11_008 * 5 // 4, 200 * 256)


def test_every_fit_and_cut_of_the_configs_has_needs():
    """The paper's, with mixes, images, answers, other methods and healings among them."""
    for path in sorted((ROOT / "config").glob("*.yaml")):
        config = load(path)
        for fit in config.fits:
            for cut in config.cuts:
                for calibration in config.calibrations:
                    names = {**NAMES, "fit": fit, "cut": cut, "calibration": calibration}
                    work = work_of("transform", config, names, UNKNOWN)
                    asked = needs(rule_of_fit(config, names), UNKNOWN, work, "cuda")
                    # a text to heal on has 20 times the tokens of one to fit on, whose states some methods keep
                    assert 5 <= asked.runtime < 10**6 and 1500 <= asked.mem_mb < 10**8
        for healing in config.healings:
            work = work_of("heal", config, {**NAMES, "healing": healing}, UNKNOWN)
            entry = entry_of("heal", config, {**NAMES, "healing": healing})
            assert needs(entry, UNKNOWN, work, "cuda").runtime > (600 if path.stem == "paper" else 5)


def test_what_is_known_of_a_model(llama, tmp_path):
    found = outline_for(ModelConfig(source=str(llama)), tmp_path / "none.json")
    assert found.num_blocks == 6 and found.hidden_size == 16
    assert outline_for(ModelConfig(source=str(tmp_path / "gone")), tmp_path / "none.json") is None
    hub = ModelConfig(source="owner/name", revision="main")
    assert outline_for(hub, tmp_path / "none.json") is None
    replace(resolve(str(llama)), source="owner/name").save(tmp_path / "model.json")
    made = outline_for(hub, tmp_path / "model.json")
    assert (made.parameters, made.block_parameters) == (found.parameters, found.block_parameters)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_by_a_cached_config(llama, tmp_path, monkeypatch, tied):
    """config.json alone, as the Hub's cache has it after a look at it; the estimate is within a twentieth."""
    config = {**CONFIG, "hidden_size": 4096, "num_hidden_layers": 32, "tie_word_embeddings": tied}
    snapshot = tmp_path / "models--owner--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    (tmp_path / "models--owner--name/refs").mkdir()
    (tmp_path / "models--owner--name/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = outline_for(ModelConfig(source="owner/name", revision="main"), tmp_path / "none.json")
    exact = 6_738_415_616 - (32_000 * 4096 if tied else 0)  # Llama 2 7B
    assert found.parameters == pytest.approx(exact, rel=0.05)
    assert found.file_bytes == 2 * found.parameters


def test_no_torch_and_no_network_are_needed():
    code = (
        "import sys; from replaceme.planning.job_resources import *; from replaceme.planning.job_work import *; "
        f"outline_for(ModelConfig(source={str(ROOT / 'resources/micro')!r}), 'none'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'requests', 'httpx')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_divergence_holds_two_models():
    """And of both the logits of a batch."""
    calibrations = {"text": CalibrationConfig(dataset="micro", samples=10, tokens=512)}
    section = EvaluationConfig(tasks={"quiz": {}}, divergence="text")
    config = SimpleNamespace(evaluations={"one": section}, calibrations=calibrations)
    work = work_of("divergence", config, {"evaluation": "one"}, UNKNOWN)
    assert (work.tokens, work.positions) == (10 * 512, 6 * 523)  # 2^26 numbers of a vocabulary of 128,256
    there = needs("divergence", UNKNOWN, work, "cuda")
    assert there.mem_mb - needs("evaluate", UNKNOWN, work, "cuda").mem_mb == pytest.approx(16e3, abs=200)


def test_an_evaluation_of_images_alone():
    """It has no tasks; an image counts as so many tokens, once."""
    one = EvaluationConfig(zeroshot={"photos": ZeroShotConfig(images="photos")}, limit=100, batch_size=8)
    config = SimpleNamespace(evaluations={"images": one})
    work = work_of("evaluate", config, {"evaluation": "images"}, UNKNOWN)
    assert (work.tokens, work.positions) == (100 * IMAGE, 8 * IMAGE)


def test_images_count_by_their_pixels():
    """8000 of 336 pixels a side: one by one and stacked where they are read, whole in every later pass."""
    sections = {name: CalibrationConfig(images=name, samples=8000) for name in ("ours", "theirs")}
    sections |= {"both": CalibrationConfig(mix={"ours": 1, "theirs": 1}, samples=8000)}
    sections |= {"text": CalibrationConfig(dataset="micro", samples=8000)}
    config = SimpleNamespace(calibrations=sections)
    whole = 8000 * 3 * 336 * 336
    for rule, name, values in (("tokens", "ours", 2), ("mix", "both", 4), ("distances", "both", 1), ("mix", "text", 0)):
        work = work_of(rule, config, {"calibration": name}, replace(UNKNOWN, config=CLIP))
        assert work.pixels == values * whole
        assert needs(rule, UNKNOWN, work, "cuda").mem_mb >= 4 * values * whole / 1e6
    assert work_of("tokens", config, {"calibration": "ours"}, UNKNOWN).pixels == 2 * 8000 * 3 * 224 * 224


@pytest.mark.parametrize(("fit", "groups", "copies"), [
    ({"method": "svd_llm"}, 1, 1),
    ({"method": "slicegpt"}, 1, 1),
    ({"method": "slicegpt", "estimation": "sequential"}, 1, 1),
    ({"method": "llm_streamline"}, 1, 3),
    ({"method": "llm_streamline"}, 4, 9),
    ({"method": "llm_pruner"}, 1, 0),
    ({}, 1, 0),
])  # fmt: skip
def test_states_of_the_whole_text(fit, groups, copies):
    """The paper's 8000 sequences of 1024 tokens, hidden size 4096, bfloat16: 67 GB for each copy."""
    config = SimpleNamespace(
        calibrations={"text": CalibrationConfig(dataset="micro", samples=8000, tokens=1024)},
        cuts={"cut": CutConfig(blocks=8, groups=groups)},
        fits={"fit": fit_config(**fit), "none": FitConfig(transform="identity")},
    )
    names = {"calibration": "text", "cut": "cut"}
    with_it, without = (work_of("transform", config, {**names, "fit": one}, of_size(7)) for one in ("fit", "none"))
    entry = rule_of_fit(config, {**names, "fit": "fit"})
    more = needs(entry, of_size(7), with_it, "cuda").mem_mb - needs(entry, of_size(7), without, "cuda").mem_mb
    assert more == pytest.approx(copies * 67_109, abs=100)
