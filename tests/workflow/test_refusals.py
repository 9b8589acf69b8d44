"""What cannot work ends before any job: a non-zero exit and one line for every mistake, in Snakemake's own output."""

import json
import shutil

import pytest


def refused(project, *expected, arguments=()):
    """Run Snakemake, which must stop at once with these lines and without a traceback."""
    done = project.snakemake(*arguments)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    lines = [line.strip() for line in output.splitlines()]
    for parts in expected:
        assert [line for line in lines if all(part in line for part in parts)], (parts, output)
    assert "Traceback" not in output and "Job stats" not in output
    assert len([line for line in lines if line]) <= len(expected) + 4, output
    assert not (project.folder / "results").exists()


def test_mistakes_in_the_config(project):
    project.config(
        calibrations={"plain": {"sampels": 3, "tokens": "16"}},
        tables={"main.1": {"cuts": ["n1", "n2"], "evaluation": "quiz"}},
    )
    refused(
        project,
        ("my.yaml", "calibrations.plain.sampels", "unknown key", "did you mean 'samples'?"),
        ("my.yaml", "calibrations.plain.tokens", "integer"),
        ("my.yaml", "tables.main.1.cuts", "'n2' is not defined under cuts", "n1"),
        ("my.yaml", "tables.main.1.evaluation", "'quiz' is not defined under evaluations"),
    )


def test_a_key_given_twice(project):
    path = project.folder / "my.yaml"
    path.write_text(path.read_text().replace("\nfits:\n", "\nfits:\n  ls: {ridge: 1.0}\n"))
    refused(project, ("my.yaml", "line", "key 'ls' again", "keep one of them"))


def olmo_like(folder):
    """The model's folder as that of an architecture into which a factor on the stream cannot be folded."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "olmo2"}))


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_models_and_files_that_cannot_be_used(project):
    models = {name: {"source": f"models/tiny/{name}"} for name in ("gone", "short", "olmo")}
    for name, spoil in (("short", cut_short), ("olmo", olmo_like)):
        spoil(shutil.copytree(project.folder / "models/tiny/first", project.folder / "models/tiny" / name))
    project.config(
        models=models,
        calibrations={"plain": {"dataset": "nothing.jsonl"}},
        cuts={"n4": {"blocks": 4}, "late": {"blocks": 2, "start": 3}, "most": {"ratio": 0.9}},
        evaluations={"items": {"include": "no-tasks"}},
        fits={"factor": {"transform": "scalar", "placement": "upstream"}},
        tables={
            "main.1": {"models": ["tiny.v1", *models], "cuts": ["n1", "n4", "late", "most"], "fits": ["uidl", "factor"]}
        },
    )
    refused(
        project,
        ("my.yaml: models.gone", "models/tiny/gone: no such folder"),
        ("my.yaml: models.short", "model.safetensors: truncated or corrupted", "copy it again"),
        ("my.yaml: fits.factor on models.olmo", "placement upstream is not known", "use placement block"),
        ("my.yaml: calibrations.plain", "nothing.jsonl: no such file"),
        ("my.yaml: evaluations.items", "no-tasks: no such folder"),
        *(("my.yaml: cuts.n4 on models." + name, "cannot remove 4 of 4 blocks") for name in ("tiny.v1", "olmo")),
        *(("my.yaml: cuts.late on models." + name, "start 3 must lie between 1 and 2") for name in ("tiny.v1", "olmo")),
        *(("my.yaml: cuts.most on models." + name, "ratio 0.9 is out of reach") for name in ("tiny.v1", "olmo")),
    )


def test_a_gpu_that_is_not_there(project):
    refused(project, ("device: cuda", "no GPU", "use `device: auto`"), arguments=("--config", "device=cuda"))


@pytest.mark.parametrize("command", [["model"], ["prune", "--dataset", "plain.jsonl", "--blocks", "1"]])
def test_a_hub_id_without_network(project, command):
    done = project.replaceme(command[0], "owner/name", *command[1:], "--out", "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("replaceme: error: owner/name: neither a local folder nor reachable on the Hub")
    assert not (project.folder / "out").exists() and not project.attempts.exists()
