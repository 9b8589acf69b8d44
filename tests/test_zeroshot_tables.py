"""Shortened encoders of images and texts in a table: columns, paired differences, sizes, what they were measured on."""

import numpy as np
import pytest
import torch
from tiny_clip import write_clip, write_labelled
from transformers import AutoModel

import replaceme
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.evaluations import EvaluationConfig, SpeedConfig, ZeroShotConfig
from replaceme.config.fits import FitConfig
from replaceme.core.files import write_json
from replaceme.evaluation.speed import speed
from replaceme.evaluation.zeroshot import evaluate_zeroshot
from replaceme.reports import tables
from replaceme.reports.sources import Records, footnotes

pytest.importorskip("clip_benchmark")


def test_the_speed_of_an_encoder(tmp_path):
    """Positions of images per second; the text tower is not counted."""
    clip = write_clip(tmp_path)
    found = speed(clip, SpeedConfig(batch_size=2, repeats=3, warmup=1))
    encoder = AutoModel.from_pretrained(clip).vision_model
    assert found["parameters"] == encoder.num_parameters() and found["prompt_tokens"] == 17
    assert found["prefill_tokens_per_s"]["median"] > 0
    assert found["decode_tokens_per_s"] == {"median": None, "interquartile_range": None}


def strong(folder):
    """Return a tiny CLIP whose blocks change an image by so much that other pictures come first without them."""
    model = AutoModel.from_pretrained(write_clip(folder))
    with torch.no_grad():
        for parameter in model.vision_model.encoder.parameters():
            parameter *= 8
    model.save_pretrained(folder)
    return folder


def test_a_table_of_shortened_encoders(tmp_path):
    """Its columns are the metrics, differences to UIDL are paired over images, and it says which images they were."""
    names = {"images": str(write_labelled(tmp_path / "colours")), "metrics": ["acc5", "mean_per_class_recall"]}
    captions = {
        "images": str(write_labelled(tmp_path / "captions", "retrieval")),
        "metrics": ["text_retrieval_recall@5"],
    }
    sets = {"colours": ZeroShotConfig(**names), "captions": ZeroShotConfig(**captions)}
    data = EvaluationConfig(zeroshot=sets)
    calibration, cut = CalibrationConfig(images="generated", samples=24), tmp_path / "clip/pictures/two"
    fits = {"uidl": FitConfig(transform="identity"), "ls": FitConfig()}
    clip = strong(tmp_path / "strong")
    folders = {"baseline": tmp_path / "clip/baseline", **{fit: cut / fit for fit in fits}}
    for fit, section in fits.items():
        record = replaceme.prune(clip, calibration, cut=CutConfig(blocks=4), fit=section, out=cut / fit / "model")
        write_json(cut / fit / "fit.json", {"transform": section.transform})
        write_json(cut / "cut.json", record["cut"])
    records = {}
    for name, folder in folders.items():
        model = clip if name == "baseline" else folder / "model"
        records[name] = evaluate_zeroshot(model, data)
        write_json(folder / "evaluation/seen.json", records[name])
        write_json(folder / "speed.json", speed(model, SpeedConfig(repeats=1, warmup=0)))
    frame = tables.collect([folders["uidl"], folders["ls"]], [folders["baseline"]], "seen").set_index("fit")
    columns = ["colours_acc5", "colours_mean_per_class_recall", "captions_text_retrieval_recall@5"]
    assert [name for name in frame.columns if name in columns] == columns
    for fit, record in records.items():
        assert list(frame.loc[fit, columns]) == [record["tasks"][column]["value"] for column in columns]
        assert frame.loc[fit, "average"] == pytest.approx(frame.loc[fit, [columns[0], columns[2]]].mean())
    towers = [AutoModel.from_pretrained(at).vision_model.num_parameters() for at in (clip, cut / "ls/model")]
    assert frame.loc["ls", "compression"] == pytest.approx(1 - towers[1] / towers[0])
    pairs = [np.subtract(*(records[fit]["tasks"][one]["items"] for fit in ("ls", "uidl"))) for one in columns[::2]]
    assert any(pair.any() for pair in pairs)
    assert frame.loc["ls", "average_vs_identity"] == pytest.approx(np.mean([pair.mean() for pair in pairs]))
    errors = [pair.std(ddof=1) / len(pair) ** 0.5 for pair in pairs]
    assert frame.loc["ls", "average_vs_identity_stderr"] == pytest.approx(np.hypot(*errors) / 2)
    measured = Records((), (), tuple(folder / "evaluation/seen.json" for folder in folders.values()))
    [line] = [line for line in footnotes(measured) if line.startswith("Images: ")]
    assert f"colours: {names['images']}, {records['ls']['data']['colours']['sha256'][:8]}" in line
