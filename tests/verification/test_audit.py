"""Records of steps, and the check that results still equal their records."""

import json

import pytest

from replaceme.cli import main
from replaceme.core import files
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RESULTS_VARIABLE, read_json, sha256, write_json
from replaceme.provenance.environment import versions
from replaceme.provenance.job_record import record_file, recorded
from replaceme.verification import audit as module
from replaceme.verification.audit import audit, other_versions


@pytest.fixture
def results(tmp_path, monkeypatch):
    """text.txt beside results/, from which two steps made a/one.json and, from that, tables/two.csv and .md."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RESULTS_VARIABLE, "results")
    (tmp_path / "text.txt").write_text("words")
    with recorded("first", "results/a/one.json", ["first", "--out", "results/a/one.json"]):
        files.note_read("text.txt")
        write_json("results/a/one.json", {"x": 1})
    with recorded("second", "results/tables/two", ["second"]):
        read_json("results/a/one.json")
        for kind in ("csv", "md"):
            files.write_text(f"results/tables/two.{kind}", "2")
    with recorded("third", "results/b/three.json", ["third"]):
        write_json("results/b/three.json", 3)
    return tmp_path / "results"


def test_a_step_is_recorded_with_what_it_read_and_wrote(results):
    record = read_json(results / "records/tables/two.json")
    assert record["step"] == "second" and record["arguments"] == ["second"]
    assert record["inputs"] == {"a/one.json": sha256(results / "a/one.json")}
    assert record["outputs"] == {f"tables/two.{kind}": sha256(results / f"tables/two.{kind}") for kind in ("csv", "md")}
    assert record["versions"] == versions()
    assert read_json(results / "records/a/one.json.json")["inputs"] == {"../text.txt": sha256("text.txt")}


def test_nothing_is_recorded_of_a_step_that_fails_or_writes_elsewhere(results, monkeypatch, tmp_path):
    before = sorted((results / "records").rglob("*"))
    with pytest.raises(ReplaceMeError), recorded("fit", "results/c/d.json", []):
        write_json("results/c/d.json", 1)
        raise ReplaceMeError("no")
    with recorded("fit", tmp_path / "elsewhere.json", []):
        write_json("elsewhere.json", 1)
    with recorded("rows", "results/a/rows/mlp", []):  # gone when they were used
        write_json("results/a/rows/mlp/index.json", 1)
    monkeypatch.delenv(RESULTS_VARIABLE)
    with recorded("fit", "results/c/e.json", []):
        write_json("results/c/e.json", 1)
    assert sorted((results / "records").rglob("*")) == before


def test_the_record_of_the_same_work_is_the_same(results):
    path = record_file("results/a/one.json", "results")
    before = path.read_bytes()
    with recorded("first", "results/a/one.json", ["first", "--out", "results/a/one.json"]):
        files.note_read("text.txt")
        write_json("results/a/one.json", {"x": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("same_size", [False, True], ids=["other size", "same size"])
def test_a_step_whose_input_was_edited_meanwhile_has_no_record(results, caplog, same_size):
    """Neither a new one nor that of an earlier run, as the result may be of what the file was before."""
    with recorded("first", "results/a/one.json", ["first"]):
        files.note_read("text.txt")
        (results.parent / "text.txt").write_text("sword" if same_size else "others")
        files.note_read("text.txt")
        write_json("results/a/one.json", {"x": 2})
    [warning] = caplog.messages
    assert "text.txt: edited while this step ran" in warning and "\n" not in warning
    with pytest.raises(ReplaceMeError, match="nothing is recorded"):
        audit(results / "a/one.json")


def test_what_a_step_reads_of_its_own_output_is_no_input(results):
    """Also not where it replaced what it had read."""
    for _ in range(2):
        with recorded("merge", "results/m/model", []):
            if (results / "m/model").is_dir():
                read_json("results/m/model/config.json")
            with files.replacing("results/m/model") as folder:
                folder.mkdir()
                (folder / "config.json").write_text("{}")
                (folder / files.RECORD).write_text("{}")
    assert read_json(results / "records/m/model.json")["inputs"] == {}


@pytest.mark.parametrize(
    ("path", "count"),
    [("", 3), ("tables/two.csv", 2), ("tables", 2), ("a", 1), ("a/one.json", 1), ("b/three.json", 1)],
)
def test_all_that_something_was_made_from_is_checked_and_no_more(results, path, count):
    found = audit(results / path)
    assert found.records == count and found.lines == []


@pytest.mark.parametrize(
    ("changed", "path", "roles"),
    [
        ("text.txt", "tables/two.md", ["input of first"]),
        ("results/a/one.json", "tables/two.md", ["input of second", "output of first"]),
        ("results/tables/two.csv", "tables/two.md", ["output of second"]),
        ("results/b/three.json", "", ["output of third"]),
        ("results/b/three.json", "tables", []),
    ],
)
@pytest.mark.parametrize("gone", [False, True], ids=["another", "missing"])
def test_a_file_that_is_not_what_it_was_is_named_with_every_record_of_it(results, changed, path, roles, gone):
    file = results.parent / changed
    recorded_hash = sha256(file)
    file.unlink() if gone else file.write_text("another")
    where = results / path if path else results
    found = audit(where).differences if where.exists() else []
    assert sorted(one.role for one in found) == roles
    for one in found:
        assert one.file == str(file) and one.recorded == recorded_hash
        assert one.found == ("missing" if gone else sha256(file))


def test_versions_that_are_not_those_here_are_counted():
    here = versions()
    other = here | {"torch": "0.1", "no-such-package": "1"}
    lines = [one.line for one in other_versions([here, other, other])]
    assert lines == [
        "no-such-package: 1 in 2 records, not installed here",
        f"torch: 0.1 in 2 records, {here['torch']} here",
    ]


def test_the_command_says_what_differs_in_one_line_each_and_fails(results, capsys):
    assert main(["verify", "results"]) == 0
    assert capsys.readouterr().out == "results: as recorded (5 files, 3 steps)\n"
    (results.parent / "text.txt").write_text("others")
    (results / "b/three.json").write_text("4")
    assert main(["verify", "results"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("replaceme: error:")]
    assert len(lines) == 2 and "three.json" in lines[0] and "text.txt" in lines[1]
    assert main(["verify", "results", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["role"] for one in found["differences"]] == ["output of third", "input of first"]


def test_versions_alone_fail_unless_any_will_do(results, capsys):
    path = results / "records/b/three.json.json"
    path.write_text(json.dumps(read_json(path) | {"versions": {"torch": "0.1"}}))
    assert main(["verify", "results"]) == 1
    assert "torch: 0.1 in 1 records" in capsys.readouterr().err
    assert main(["verify", "results", "--any-versions"]) == 0


def test_what_nothing_is_recorded_of_is_refused(results, tmp_path, capsys):
    assert main(["verify", "no-such"]) == 1
    assert "no such file" in capsys.readouterr().err
    (results / "unrecorded.txt").write_text("x")
    for path in (results / "unrecorded.txt", tmp_path / "text.txt"):
        with pytest.raises(ReplaceMeError, match="nothing is recorded"):
            audit(path)
    (results / "records/broken.json").write_text("{")
    with pytest.raises(ReplaceMeError, match="not valid JSON"):
        audit(results)
    assert main(["verify", "results", "a"]) == 1
    assert "PATH alone" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"step": 1, "inputs": 2}', "{", "\xff"])
def test_records_of_others_are_no_records_of_steps(results, content, tmp_path, monkeypatch):
    """Neither above a model that was made by hand, nor, where they can be told, among ours."""
    monkeypatch.delenv(RESULTS_VARIABLE)
    theirs, model = tmp_path / "records/x.json", tmp_path / "m/model"
    theirs.parent.mkdir()
    theirs.write_text(content, encoding="latin-1")
    model.mkdir(parents=True)
    (model / "model.safetensors").write_text("weights")
    write_json(model / files.RECORD, {"files": {"model.safetensors": sha256(model / "model.safetensors")}})
    found = audit(model)
    assert (found.files, found.records, found.lines) == (1, 0, [])
    if content.endswith(("]", "}")):
        theirs.rename(results / "records/x.json")
    assert audit(results).records == 3


def test_a_model_and_a_checkpoint_are_checked_by_their_own_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RESULTS_VARIABLE, "results")
    for name in ("source", "results/m/c/n/f/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_text(name)
    listed = {"model.safetensors": sha256("source/model.safetensors")}
    with recorded("model", "results/m/model.json", []):
        write_json("results/m/model.json", {"folder": "source", "source": "source", "files": listed})
    merged = "results/m/c/n/f/model"
    with recorded("merge", merged, []):
        read_json("results/m/model.json")
        files_there = {"model.safetensors": sha256(f"{merged}/model.safetensors")}
        write_json(
            f"{merged}/replaceme.json",
            {"files": files_there, "source": {"source": "./source", "files": listed}, "versions": versions()},
        )
    monkeypatch.chdir("/")
    assert audit(tmp_path / merged).lines == []
    (tmp_path / "source/model.safetensors").write_text("other weights")
    roles = [one.role for one in audit(tmp_path / merged).differences]
    assert sorted(roles) == ["file", "file of the source"]
    (tmp_path / merged / "model.safetensors").write_text("other weights")
    assert len(audit(tmp_path / merged).differences) == 3
    # by itself, without the workflow's records
    monkeypatch.setattr(module, "FOLDER", "no-records")
    assert "file" in [one.role for one in audit(tmp_path / merged).differences]
