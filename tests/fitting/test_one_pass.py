"""One pass for the distances and the fit gives what two give, also where the first batch foresaw another cut."""

from dataclasses import replace

import pytest

import replaceme
from replaceme.activations import capture
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.fitting import one_pass

CUTS = {
    "cosine": {"blocks": 2, "metric": "cosine"},
    "last": {"blocks": 2, "metric": "angular", "position": "last"},
    "cka": {"blocks": 2, "metric": "cka"},
    "two groups": {"blocks": 2, "metric": "cosine", "groups": 2, "adjacency": "separate"},
}
FITS = {
    "least squares": {},
    "cosine": {"objective": "cosine", "fit_tokens": 200},
    "exact": {"objective": "cosine_exact"},
    "block": {"placement": "block"},
    "dropped": {"transform": "identity"},
}


@pytest.fixture
def calibration(texts, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(texts))
    return CalibrationConfig(dataset=str(path), samples=24, tokens=20, batch_size=4)


@pytest.fixture
def batches(monkeypatch):
    """The forward passes over batches that are made, and how many blocks each went through."""
    real, made = capture.forward, []

    def forward(model, family, batch, wanted):
        made.append(wanted.last)
        return real(model, family, batch, wanted)

    monkeypatch.setattr(capture, "forward", forward)
    return made


def shortened(folder, calibration, out, cut, fit, **options):
    record = replaceme.prune(
        folder, calibration, cut=CutConfig(**cut), fit=FitConfig(**fit), out=out, verify=False, **options
    )
    return record["cut"], {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize(("source", "cut", "fit"), [
    *(("sharded", "cosine", fit) for fit in FITS),
    *(("sharded", cut, "cosine") for cut in CUTS if cut != "cosine"),
    ("gemma", "cosine", "cosine"),
])  # fmt: skip
def test_one_pass_gives_what_two_give(request, calibration, tmp_path, monkeypatch, batches, caplog, source, cut, fit):
    caplog.set_level("INFO")
    given = (request.getfixturevalue(source), calibration)
    shape = (CUTS[cut], FITS[fit])
    once = shortened(*given, tmp_path / "once", *shape)
    count, gain = -(-calibration.samples // calibration.batch_size), source == "gemma"
    again = "one more pass" in caplog.text
    assert len(batches) == 1 + count * (1 + again + gain), "the first batch, and all of them"
    batches.clear()
    monkeypatch.setattr(one_pass, "can_foresee", lambda *_: False)
    assert shortened(*given, tmp_path / "twice", *shape) == once
    assert len(batches) == count * (1 + (fit != "dropped") + gain)


@pytest.mark.parametrize("fit", ["least squares", "exact"])
def test_another_cut_was_foreseen(sharded, calibration, tmp_path, monkeypatch, batches, caplog, fit):
    real, chosen = one_pass.choose_possible, []

    def wrong_at_first(cut, record, distances, **more):
        right = real(cut, record, distances, **more)
        chosen.append(right)
        return right if len(chosen) > 1 else replace(right, groups=[(1, 3) if right.groups != [(1, 3)] else (2, 4)])

    monkeypatch.setattr(one_pass, "choose_possible", wrong_at_first)
    caplog.set_level("INFO")
    late = shortened(sharded, calibration, tmp_path / "late", CUTS["cosine"], FITS[fit])
    assert len(chosen) == 2 and "one more pass" in caplog.text
    monkeypatch.undo()
    assert shortened(sharded, calibration, tmp_path / "once", CUTS["cosine"], FITS[fit]) == late


def test_what_cannot_be_foreseen_is_done_step_by_step(llama):
    whole = object()
    by_distance, fit = CutConfig(**CUTS["cosine"]), FitConfig()
    assert one_pass.can_foresee(by_distance, fit, whole)
    for cut in ({"blocks": 2}, {"blocks": 2, "start": 2}):
        assert not one_pass.can_foresee(CutConfig(**cut), fit, whole)
    for other in ({"ridge": "auto"}, {"placement": "down_proj", "recycle": 0.25}):
        assert not one_pass.can_foresee(by_distance, FitConfig(**other), whole)
    groups = CutConfig(**CUTS["two groups"])
    assert not one_pass.can_foresee(groups, FitConfig(estimation="sequential"), whole)
    assert not one_pass.can_foresee(by_distance, fit, type("Streamed", (), {"streamed": True})())


def test_a_failing_pass_leaves_nothing(sharded, calibration, tmp_path, monkeypatch):
    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("replaceme.activations.gather.Gathered.statistics", fails)
    with pytest.raises(KeyboardInterrupt):
        shortened(sharded, calibration, tmp_path / "out", CUTS["cosine"], {})
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]
