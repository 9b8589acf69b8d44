"""`replaceme.prune` from end to end."""

import inspect
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import replaceme
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.healings import TrainingConfig

# what comes out is looked at here; that it is verified is one test, and tests/verification/test_verify.py
prune = partial(replaceme.prune, verify=False)


def reload(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(folder)("w1 w2 w3", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
    return model


SIZES = [{"blocks": 2}, {"ratio": 0.25}, {"ratio": 0.3, "of": "cache"}, {"cut": CutConfig(blocks=2, metric="cosine")}]


@pytest.mark.parametrize("metric", ["cosine", "cosine_after_fit"])
def test_a_cut_that_the_class_cannot_do_without_is_refused_before_the_fit(
    llama, texts, tmp_path, monkeypatch, refuses, metric
):
    monkeypatch.setattr("replaceme.cuts.possible.fault_of", lambda *_: "without them it fails")
    monkeypatch.setattr("replaceme.fitting.fit_cut.fit_cut", lambda *_: pytest.fail("it was fitted"))
    with refuses("cannot do without any run of so many blocks; without them it fails; remove fewer"):
        prune(llama, texts=texts, cut=CutConfig(blocks=2, metric=metric), out=tmp_path / "out", device="cpu")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_prune(llama, texts, tmp_path, size):
    is_first = size == SIZES[0]
    record = replaceme.prune(llama, texts=texts, **size, out=tmp_path / "out", device="cpu", verify=is_first)
    assert len(reload(tmp_path / "out").model.layers) == 4
    assert record["cut"]["blocks"] == 2 and record["cut"]["num_blocks"] == 6
    assert 0 < record["fit"]["residual"] < record["fit"]["residual_identity"]
    saved = json.loads((tmp_path / "out" / "replaceme.json").read_text())
    summary = record.pop("summary")
    assert {key: saved[key] for key in record} == record and "summary" not in saved
    assert summary["blocks"] == (6, 4) and summary["predictions"]["text"] == "of the calibration text"
    assert saved["source"]["files"] == replaceme.models.checkpoints.resolve(str(llama)).files
    card = (tmp_path / "out" / "README.md").read_text()
    start = record["cut"]["groups"][0][0]
    assert (
        f"blocks [{start}, {start + 2}) (of 0 .. 5, ends not included)" in card
        and f"folded into block {start - 1}" in card
    )


def test_the_fit_is_least_squares_on_the_given_texts(llama, texts, tokenizer, tmp_path, brute_rows):
    """Independent of the package: rows by plain transformers, lstsq, and the fold by hand."""
    from replaceme.calibration.tokens import tokens_from_texts

    cut = CutConfig(blocks=2, start=3)
    prune(llama, texts=texts, cut=cut, out=tmp_path / "out", device="cpu")
    hidden, outputs, _ = brute_rows(llama, tokens_from_texts(texts, tokenizer, None, 1024), "float32")
    best = torch.linalg.lstsq(outputs[2], hidden[4] - hidden[2] + outputs[2]).solution
    name = "model.layers.2.mlp.down_proj.weight"
    before, after = (load_file(folder / "model.safetensors")[name].double() for folder in (llama, tmp_path / "out"))
    assert (after - best.T @ before).norm() <= 1e-5 * after.norm()


def test_a_ridge_chosen_over_parts_of_the_texts(llama, texts, tmp_path):
    fit = FitConfig(ridge="auto", towards="identity")
    calibration = {"texts": texts, "blocks": 2, "fit": fit, "out": tmp_path / "out", "device": "cpu"}
    report = prune(llama, **calibration)["fit"]
    assert report["ridge"] > 0
    assert len(report["curve"][0]["by_shard"]) > 1


def test_a_cosine_fit_stores_its_rows_only_for_a_while(llama, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit = FitConfig(objective="cosine", iterations=2)
    report = prune(llama, texts=texts, blocks=2, fit=fit, out=tmp_path / "out", device="cpu")["fit"]
    assert report["solver"] == "irls" and report["residual"] < report["residual_identity"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_fitting_beats_dropping_on_the_texts(llama, texts, tokenizer, tmp_path):
    """The logits of the pruned model come closer to the original's with the fit than without."""
    from replaceme.models.loading import load_causal_model

    cut = CutConfig(blocks=1, start=5)
    for name in ("full", "identity"):
        prune(llama, texts=texts, cut=cut, fit=FitConfig(transform=name), out=tmp_path / name, device="cpu")
    original, *pruned = (
        load_causal_model(f, "float32", "cpu") for f in (llama, tmp_path / "full", tmp_path / "identity")
    )
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    fitted, dropped = (sum(float((m(x).logits - original(x).logits).norm()) for x in ids) for m in pruned)
    assert fitted < 0.95 * dropped


def test_identity_changes_no_tensor(gemma, texts, tmp_path):
    record = prune(gemma, texts=texts, blocks=2, fit=FitConfig(transform="identity"), out=tmp_path / "out")
    assert record["fit"]["solver"] == "identity"
    before, after = (load_file(folder / "model.safetensors") for folder in (gemma, tmp_path / "out"))
    for name, tensor in after.items():
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) >= record["cut"]["groups"][0][0]:
            parts[2] = str(int(parts[2]) + 2)
        assert torch.equal(tensor, before[".".join(parts)])
    assert "nothing was put in their place (UIDL)" in (tmp_path / "out" / "README.md").read_text()
    reload(tmp_path / "out")


def test_two_runs_give_the_same_bytes(sharded, texts, tmp_path):
    for name in ("one", "two"):
        prune(sharded, texts=texts, blocks=2, out=tmp_path / name, device="cpu")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) > 5 and files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "Path"])
def test_texts_from_a_file(llama, texts, tmp_path, as_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    record = prune(llama, texts=as_path(path), blocks=2, out=tmp_path / "out", device="cpu")
    assert record["origin"]["calibration"]["dataset"] == path.name  # not where it lies
    assert record["origin"]["calibration"]["file_sha256"]


def test_a_calibration_section(llama, tmp_path):
    section = CalibrationConfig(dataset="micro", samples=8, tokens=32)
    record = prune(llama, section, blocks=1, out=tmp_path / "out", device="cpu")
    assert record["origin"]["calibration"]["dataset"] == "micro" and record["fit"]["tokens"] == 8 * 32


def test_an_iterator_of_texts(llama, texts, tmp_path):
    record = prune(llama, texts=iter(texts), blocks=1, out=tmp_path / "out", device="cpu")
    assert record["fit"]["tokens"] == sum(len(text.split()) for text in texts)


BAD = {
    "no text": ({"texts": None, "blocks": 2}, "give either texts or calibration"),
    "text twice": (
        {"calibration": CalibrationConfig(dataset="micro"), "blocks": 2},
        "give either texts or calibration",
    ),
    "empty texts": ({"texts": ["", " "], "blocks": 2}, "no text left"),
    "no texts": ({"texts": [], "blocks": 2}, "no text left"),
    "no size": ({}, "give either blocks or ratio"),
    "two sizes": ({"blocks": 2, "ratio": 0.5}, "give either blocks or ratio"),
    "cut and blocks": ({"blocks": 2, "cut": CutConfig(blocks=3)}, "give either a cut section or blocks or ratio"),
    "costs of parameters": ({"blocks": 2, "costs": "x.json"}, "x.json: costs are for a ratio of another unit"),
    "too many blocks": ({"blocks": 6}, "cannot remove 6 of 6 blocks"),
    "ratio out of reach": ({"ratio": 0.99}, "ratio 0.99 is out of reach"),
    "a missing file": ({"texts": "none.txt", "blocks": 2}, "none.txt: no such file"),
}


class Failing:
    """Texts of which the second cannot be had."""

    def __iter__(self):
        yield "w1"
        raise KeyError("gone")


PATH, TEXTS = "should be a valid string", "a list of strings, or a path, is needed"
ARGUMENTS = {
    "source": [(None, PATH), (3, PATH), (b"x", PATH), ("", "at least 1 character"), ("a\0b", "cannot be seen")],
    "folder": [(None, PATH), (3, PATH), (["x"], PATH), ("", "at least 1 character")],
    "out": [(None, PATH), (3, PATH), (True, PATH), ("", "at least 1 character"), ("x" * 300, "too long for a file")],
    "revision": [(1, PATH), (b"main", PATH)],
    "calibration": [({"dataset": "micro"}, "instance of CalibrationConfig (found {'dataset"), ("micro", "instance")],
    "texts": [
        ("a long text\nof lines " * 9, "no such file 'a long text\\nof lines"),
        ("w1 w2 " * 2000, "no such file"),
        ("owner/name", "no such file 'owner/name'; give the path of a file (.txt, .jsonl"),
        (b"w1", TEXTS), (3, TEXTS), (True, TEXTS), ({"text": "w1"}, TEXTS), ({"w1"}, TEXTS), (len, TEXTS),
        (["w1", None], "texts[1]: a string is needed (found None)"),
        ([b"w1"], "texts[0]: a string is needed (found b'w1')"),
        (["w1", ["w2"]], "texts[1]: a string is needed (found ['w2'])"),
        (["w1", "w2\ud800"], "texts[1]: holds half a character"),
        (Failing(), "texts[1]: cannot be had (KeyError: 'gone')"),
    ],
    "original": [(3, PATH), (b"x", PATH)],
    "images": [(3, PATH), (["a.png"], PATH), (b"x", PATH)],
    "blocks": [
        ("2", "should be a valid integer (found '2')"), (2.0, "valid integer"), (True, "valid integer"),
        (0, "greater than or equal to 1"), (-1, "greater than or equal to 1"), (10**12, "use at most"),
    ],
    "ratio": [
        ("0.5", "should be a valid number"), (True, "valid number"), (1.5, "less than 1"), (-0.5, "greater than 0"),
        (float("nan"), "finite number"),
    ],
    "of": [(None, PATH), ("speed", "should be 'parameters', 'flops'")],
    "costs": [(3, PATH), (["a.json"], PATH)],
    "cut": [({"blocks": 2}, "instance of CutConfig"), (FitConfig(), "instance of CutConfig")],
    "fit": [({}, "a FitConfig, or"), ("full", "a FitConfig, or"), (FitConfig, "a FitConfig, or")],
    "training": [({"train": "full"}, "instance of TrainingConfig"), (None, "instance of TrainingConfig")],
    "device": [("gpu", "should be 'auto', 'cpu' or 'cuda'"), (0, "should be 'auto'"), (None, "should be 'auto'")],
    "gpus": [(0, "greater than or equal to 1"), ("2", "valid integer"), (True, "valid integer")],
    "dequantise": [("yes", "valid boolean"), (None, "valid boolean"), (1, "valid boolean")],
    "verify": [("yes", "valid boolean"), (None, "valid boolean"), (1, "valid boolean")],
}  # fmt: skip
TRAINING = TrainingConfig(train="full", steps=1, learning_rate=1.0)
USUAL = {
    "prune": {"source": "nowhere", "out": "out", "texts": ["w1"], "blocks": 2},
    "heal": {"folder": "nowhere", "out": "out", "texts": ["w1"], "training": TRAINING},
}


@pytest.mark.parametrize("function", USUAL)
def test_every_argument_of_a_wrong_kind_is_one_line_before_any_work(refuses, monkeypatch, tmp_path, function):
    """All that the public functions take, none left out."""
    monkeypatch.setattr("replaceme.api.read_config", lambda *_: pytest.fail("the model was looked at"))
    monkeypatch.setattr("replaceme.api.opened", lambda *_: pytest.fail("the model was looked at"))
    monkeypatch.chdir(tmp_path)
    call = getattr(replaceme, function)
    for name in inspect.signature(call).parameters:
        for value, message in ARGUMENTS[name]:
            given = {**USUAL[function], name: value}
            for other, place in {"calibration": "texts", "images": "texts", "ratio": "blocks", "cut": "blocks"}.items():
                if name == other:
                    given.pop(place, None)
            with refuses(f"{function}: {name}", message):
                call(**given)
    with refuses("nowhere.txt: no such file"):
        call(**{**USUAL[function], "texts": "nowhere.txt"})
    assert not list(tmp_path.iterdir())


def test_the_public_names(refuses):
    assert replaceme.__all__ == ["ReplaceMeError", "heal", "prune"]
    with pytest.raises(replaceme.ReplaceMeError, match="give either texts or calibration"):
        replaceme.heal("x", out="y", training=TRAINING)


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_before_any_forward_pass(llama, texts, tmp_path, refuses, monkeypatch, case):
    def forward(*_, **__):
        pytest.fail("a forward pass ran")

    monkeypatch.setattr("replaceme.activations.capture.forward", forward)
    options, message = BAD[case]
    with refuses(message):
        prune(llama, **{"texts": texts, "out": tmp_path / "out", **options})
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_refused_before_any_work(llama, texts, tmp_path, refuses, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.setattr("replaceme.models.loading.load_tokenizer", lambda *_: pytest.fail("work was done"))
    with refuses("is not empty (it holds thesis.txt)"):
        prune(llama, texts=texts, blocks=2, out=tmp_path)
    with refuses("holds the source model"):
        prune(llama, texts=texts, blocks=2, out=llama)


def test_a_fit_that_cannot_be_folded_is_refused_at_once(llama, texts, tmp_path, refuses, monkeypatch):
    monkeypatch.setattr("replaceme.models.loading.load_base_model", lambda *_: pytest.fail("the model was loaded"))
    folder = Path(shutil.copytree(llama, tmp_path / "olmo"))
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"llama"', '"olmo2"'))
    with refuses("placement upstream is not known"):
        fit = FitConfig(transform="scalar", placement="upstream")
        prune(folder, texts=texts, blocks=2, fit=fit, out=tmp_path / "out")


@pytest.mark.parametrize("fit", [{}, {"objective": "cosine"}, {"ridge": "auto"}, {"placement": "down_proj"}], ids=str)
def test_a_model_that_normalises_its_mlp_output(gemma, texts, tokenizer, tmp_path, brute_rows, fit):
    """The folded carrier gives `s p / rms(p)`, p = m T, with the s that least squares gives that direction."""
    from replaceme.calibration.tokens import tokens_from_texts

    cut = CutConfig(blocks=2, start=3)
    record = prune(gemma, texts=texts, cut=cut, fit=FitConfig(**fit), out=tmp_path / "out", device="cpu")
    tokens = tokens_from_texts(texts, tokenizer, None, 128)
    hidden, outputs, _ = brute_rows(gemma, tokens, "float32")
    _, folded, _ = brute_rows(tmp_path / "out", tokens, "float32")
    target, found = hidden[4] - hidden[2] + outputs[2], folded[2]
    gain = record["fit"]["gain"]
    assert float(found.square().mean(1).sqrt().median()) == pytest.approx(gain, rel=1e-3)
    assert gain == pytest.approx(float((target * found).sum() / found.square().sum()) * gain, rel=1e-3)
    residual = float((target - found).square().sum() / target.square().sum())
    assert record["fit"]["residual"] == pytest.approx(residual, rel=1e-3)
    dropped = float((target - outputs[2]).square().sum() / target.square().sum())
    assert residual < 0.95 * dropped


@pytest.mark.parametrize("estimation", ["parallel", "sequential"])
@pytest.mark.parametrize("objective", ["l2", "cosine"])
def test_several_groups(llama, texts, tokenizer, tmp_path, brute_rows, monkeypatch, estimation, objective):
    """Each map is the least-squares one of the original model, or of the model as shortened before it."""
    from replaceme.calibration.tokens import tokens_from_texts
    from replaceme.cuts import choose as cuts

    groups, choose = [(1, 2), (3, 4)], cuts.choose
    monkeypatch.setattr(cuts, "choose", lambda *given: replace(choose(*given), groups=groups))
    fit = FitConfig(estimation=estimation, objective=objective)
    cut = CutConfig(blocks=2, start=3)
    record = prune(llama, texts=texts, cut=cut, fit=fit, out=tmp_path / "out", device="cpu")
    assert len(reload(tmp_path / "out").model.layers) == 4 and len(record["fit"]["by_group"]) == 2
    assert 0 < record["fit"]["residual"] < 1
    if objective == "cosine":
        return
    tokens = tokens_from_texts(texts, tokenizer, None, 128)
    hidden, outputs, _ = brute_rows(llama, tokens, "float32")
    _, folded, _ = brute_rows(tmp_path / "out", tokens, "float32")
    # block 1 of the result is the carrier of the second group; what it sees differs from what the original's sees
    target = hidden[3] - hidden[2] + outputs[2]
    best = outputs[2] @ torch.linalg.lstsq(outputs[2], target).solution
    first = hidden[1] - hidden[0] + outputs[0]
    expected = outputs[0] @ torch.linalg.lstsq(outputs[0], first).solution
    assert (folded[0] - expected).abs().max() < 1e-4 * expected.abs().max()
    errors = [one["residual"] for one in record["fit"]["by_group"]]
    parallel = float((target - best).square().sum() / target.square().sum())
    assert (errors[1] == pytest.approx(parallel, rel=1e-4)) == (estimation == "parallel")


def test_unknown_attributes():
    with pytest.raises(AttributeError, match="no attribute 'prume'"):
        _ = replaceme.prume
