"""Keys of the environment, and where somebody's files lie, reach no file and no line of a run."""

import logging
import shutil

import pytest
from hostile.stage import run, write_project

from replaceme.core.errors import ReplaceMeError
from replaceme.core.redaction import RedactedFormatter, published, redacted
from replaceme.planning.hub import host
from replaceme.verification.outcome import outcome

KEY = "sentinel-4711-0815"
VARIABLES = {
    "HF_TOKEN": KEY,
    "HUGGING_FACE_HUB_TOKEN": KEY,
    "AWS_SECRET_ACCESS_KEY": KEY,
    "OPENAI_API_KEY": KEY,
    "DB_PASSWORD": KEY,
    "HTTPS_PROXY": f"http://somebody:{KEY}@proxy:8080",
}
STEPS = [
    "model {home}/model --out {r}/m/model.json",
    "tokens {r}/m/model.json --dataset {home}/text.jsonl --samples 40 --tokens 16 --out {r}/m/c/tokens.safetensors",
    "distances {r}/m/model.json {r}/m/c/tokens.safetensors --device cpu --out {r}/m/c/distances.safetensors",
    "cut {r}/m/model.json --blocks 1 --start 2 --out {r}/m/c/n/cut.json",
    "gram {r}/m/model.json {r}/m/c/tokens.safetensors {r}/m/c/n/cut.json --device cpu --out {r}/m/c/n/gram",
    "sum {r}/m/c/n/gram --out {r}/m/c/n/sum",
    "fit {r}/m/model.json {r}/m/c/n/cut.json --statistics {r}/m/c/n/sum --device cpu --out {r}/m/c/n/f",
    "merge {r}/m/model.json {r}/m/c/n/cut.json {r}/m/c/n/f/transform.safetensors --out {r}/m/c/n/f/model",
    "verify {r}/m/model.json {r}/m/c/n/cut.json {r}/m/c/n/f/transform.safetensors {r}/m/c/n/f/model "
    "--out {r}/m/c/n/f/v",
    "evaluate {r}/m/model.json --task quiz --include {home}/tasks --device cpu "
    "--out {r}/m/baseline/evaluation/quiz.json",
    "evaluate {r}/m/c/n/f/model --task quiz --include {home}/tasks --device cpu --out {r}/m/c/n/f/evaluation/quiz.json",
    "speed {r}/m/model.json --prompt-tokens 4 --new-tokens 1 --repeats 1 --warmup 0 --device cpu "
    "--out {r}/m/baseline/speed.json",
    "speed {r}/m/c/n/f/model --prompt-tokens 4 --new-tokens 1 --repeats 1 --warmup 0 --device cpu "
    "--out {r}/m/c/n/f/speed.json",
    "table {r}/m/c/n/f --baseline {r}/m/baseline --evaluation quiz --out {r}/tables/main",
    "provenance --models {r}/m/model.json --calibrations {r}/m/c/tokens.safetensors "
    "--measured {r}/m/c/n/f/evaluation/quiz.json --out {r}/provenance",
]


@pytest.fixture
def keys(monkeypatch):
    """Variables that no file may hold."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_a_run_writes_neither_keys_nor_homes(keys, tmp_path, make_llama, monkeypatch):
    home = tmp_path / "home" / "alice-4242"
    shutil.copytree(make_llama(), home / "model")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "alice-4242")
    monkeypatch.chdir(home)
    write_project(home)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shown = []
    for step in STEPS:
        code, lines = run(step.format(home=home, r="results").split())
        assert code == 0, lines
        shown += lines
    files = [path for path in work.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert not [line for line in shown if KEY in line]
    results = work / "results"
    travelling = [
        *(results / "m/c/n/f/model").iterdir(),
        *(results / "tables").iterdir(),
        *results.glob("provenance.*"),
    ]
    assert {path.name for path in travelling} >= {"README.md", "replaceme.json", "main.md", "provenance.html"}
    for path in travelling:
        assert b"alice-4242" not in path.read_bytes(), path


def test_errors_and_log_lines_without_keys(keys, capsys):
    text = f"proxy http://somebody:{KEY}@proxy:8080 refuses {KEY} and hf_{'a1' * 17}"
    assert redacted(text) == "proxy http://***@proxy:8080 refuses *** and ***"
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s", (text,), None)
    assert RedactedFormatter("%(message)s").format(record) == redacted(text)

    def fails():
        raise ReplaceMeError(text)

    assert KEY not in str(outcome(fails))
    code, shown = run(["check", f"none-{KEY}.yaml"])
    assert code == 1 and shown == ["replaceme: error: none-***.yaml: no such file; give the path of a config"]


def test_short_words_and_other_variables_stay(monkeypatch):
    monkeypatch.setenv("SORT_KEY", "name")
    monkeypatch.setenv("MONKEY", "what is left alone")
    assert redacted("name, what is left alone") == "name, what is left alone"


@pytest.mark.parametrize(
    "name", ["PGPASSWORD", "MYSQL_PWD", "GITHUB_PAT", "SSHPASS", "BORG_PASSPHRASE", "REDISCLI_AUTH", "db_password"]
)
def test_names_of_secrets(monkeypatch, name):
    monkeypatch.setenv(name, KEY)
    assert redacted(f"refuses {KEY}") == "refuses ***"


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "PATH", "DATA_PATH", "PATTERN", "NO_PROXY_BYPASS", "COMPASS", "PAT"])
def test_names_of_what_is_shown(monkeypatch, name):
    monkeypatch.setenv(name, "/ordinary words")
    assert redacted("/ordinary words") == "/ordinary words"


def test_the_working_folder_stays_and_long_keys_do_not(monkeypatch, tmp_path):
    monkeypatch.setenv("APPTAINER_PWD", str(tmp_path))
    monkeypatch.setenv("SSH_PRIVATE_KEY", "k" * 5000)
    assert redacted(f"{tmp_path}/config.yaml of {'k' * 5000}") == f"{tmp_path}/config.yaml of ***"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://u:p@ss@host", "https://***@host"),
        ("https://u:p@s@s@host:80/a@b, mail a@b", "https://***@host:80/a@b, mail a@b"),
        ("https://host/@scope/name and me@host", "https://host/@scope/name and me@host"),
        ("name @ https://host/a.whl", "name @ https://host/a.whl"),
    ],
)
def test_users_in_addresses(given, expected):
    assert redacted(given) == expected


def test_a_mirror_with_a_password(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"https://somebody:{KEY}@mirror.example")
    assert host() == "mirror.example"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("owner/name", "owner/name"),
        ("resources/micro", "resources/micro"),
        ("/home/alice/llama", "llama"),
        ("~/llama", "llama"),
        ("../alice/llama/", "llama"),
        ("/", "/"),
        ({"source": ["/home/alice/a.jsonl", 3]}, {"source": ["a.jsonl", 3]}),
    ],
)
def test_published(given, expected):
    assert published(given) == expected
