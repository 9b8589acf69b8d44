"""Where numbers come from: the footnotes of a table, and the page of a run."""

import json
from dataclasses import replace

import pytest
import torch

from replaceme.cli import main
from replaceme.core.files import save_tensors
from replaceme.models.model_record import ModelRecord
from replaceme.reports.sources import Records, footnotes, parts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MACHINE = {"cpu": "a CPU", "cores": 2, "memory_bytes": 4e9, "gpus": [], "gpu_driver": None}


@pytest.fixture
def records(tmp_path):
    files = {"config.json": "ab" * 32, "model.safetensors": "cd" * 32}
    model = ModelRecord("owner/name", COMMIT, "", "", "", 4, 16, 1234567, [], files)
    local = replace(model, source="models/local", revision=None)
    for name, record in (("hub", model), ("local", local)):
        record.save(tmp_path / name / "model.json")
    text = {"dataset": "owner/text", "revision": "main", "samples": 8, "unmasked_tokens": 4096, "sha256": "ef" * 32}
    own = {"dataset": "micro", "revision": None, "seed": 5, "samples": 8, "unmasked_tokens": 99, "sha256": "01" * 32}
    for name, record in (("hub/text", text), ("local/own", own)):
        save_tensors(tmp_path / name / "tokens.safetensors", {"ids": torch.zeros(1)}, record)
    for number, machine in enumerate((MACHINE, MACHINE, {**MACHINE, "cpu": "another"})):
        (tmp_path / f"{number}.json").write_text(json.dumps({"versions": {"torch": "2"}, "hardware": machine}))
    return Records(
        [tmp_path / name / "model.json" for name in ("hub", "local")],
        [tmp_path / name / "tokens.safetensors" for name in ("hub/text", "local/own")],
        [tmp_path / f"{number}.json" for number in range(3)],
    )


def test_footnotes_name_revisions_versions_and_machines(records):
    models, texts, versions, *machines = footnotes(records)
    assert models.startswith(f"Models: hub: owner/name, {COMMIT[:12]}; local: models/local, files ")
    assert texts == "Calibration texts: text: owner/text, main; own: micro, seed 5."
    assert versions == "Versions (3 results): torch 2."
    assert machines == [
        "Measured on a CPU, 2 cores, 4 GB (2 results).",
        "Measured on another, 2 cores, 4 GB (1 results).",
    ]
    assert footnotes(Records([], [], [])) == []


def test_plain_weights_are_named_by_what_they_were_made_from(tmp_path):
    packed = {"format": "awq, 4 bits", "source": "owner/name-AWQ", "revision": COMMIT, "files": {}}
    ModelRecord("results/m/dequantised", None, "", "", "", 4, 16, 100, [], {"a": "ab"}, packed).save(
        tmp_path / "m/model.json"
    )
    [line] = footnotes(Records([tmp_path / "m/model.json"], [], []))
    assert line.startswith("Models: m: owner/name-AWQ, dequantised (awq, 4 bits), files ")


def test_texts_with_configurations_and_mixes_of_them(tmp_path):
    sums = {"dataset": "micro", "name": "sums", "taken": 30}
    record = {"mix": [sums, {"dataset": "own.txt", "taken": 70}], "seed": 1, "samples": 100, "unmasked_tokens": 5}
    path = tmp_path / "m/both/tokens.safetensors"
    save_tensors(path, {"ids": torch.zeros(1)}, {**record, "sha256": "01" * 32})
    assert footnotes(Records([], [path], [])) == [
        "Calibration texts: both: 30 of micro (sums) + 70 of own.txt, seed 1."
    ]


def test_labelled_images_once_for_each_content(tmp_path):
    colours = {"source": "photos", "commit": None, "sha256": "ab" * 32, "images": 2000}
    cifar = {"source": "owner/cifar", "commit": COMMIT, "sha256": "cd" * 32, "images": 10}
    paths = []
    for number, data in enumerate(({"colours": colours}, {"colours": colours, "cifar": cifar}, {"cifar": cifar})):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"data": data, "versions": {"torch": "2"}, "hardware": MACHINE}))
    shown = Records([], [], paths)
    assert footnotes(shown)[0] == f"Images: colours: photos, abababababab; cifar: owner/cifar, {COMMIT[:12]}."
    [images] = [part for part in parts(shown) if part.title == "Images"]
    assert [row[-1] for row in images.cells] == ["2,000", "10"]


def test_the_page_has_everything(records, tmp_path):
    assert [part.title for part in parts(records)] == ["Models", "Calibration", "Versions", "Machines"]
    lists = {"models": records.models, "calibrations": records.calibrations, "measured": records.measured}
    given = [word for name, paths in lists.items() for word in (f"--{name}", *map(str, paths))]
    assert main(["provenance", *given, "--out", str(tmp_path / "provenance")]) == 0
    page, text = ((tmp_path / f"provenance.{kind}").read_text() for kind in ("html", "md"))
    for shown in ("owner/name", COMMIT[:12], "1,234,567", "cdcdcdcdcdcd", "4,096", "efefefefefef", "another, 2 cores"):
        assert shown in page and shown in text
    assert "standard error" not in page and "<p></p>" not in page
