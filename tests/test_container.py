"""The Containerfile agrees with the rest: pins, version, user, what is copied. No engine is here to build it."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "Containerfile").read_text().splitlines()
TEXT = "\n".join(line for line in LINES if not line.startswith("#"))
STAGES = re.findall(r"^FROM (\S+)", TEXT, flags=re.MULTILINE)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_base_images_are_pinned_and_alike():
    """To a patch release: the environment is built by the Python that runs it."""
    assert len(STAGES) == 2 and len(set(STAGES)) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm", STAGES[0])


def test_every_package_is_pinned_by_the_requirements():
    """Nothing is installed but from the files of requirements, where every line is exact."""
    commands = [part.strip(" \\;)") for line in TEXT.splitlines() for part in line.split("&&") if "pip install" in part]
    assert len(commands) == 6
    files = ("requirements.txt", "requirements-cluster.txt", "requirements-bare.txt")
    allowed = [["--no-build-isolation", "."], *(["-r", file] for file in (*files, "torch.txt"))]
    for command in commands:
        given = command.split("pip install", 1)[1].split()
        assert given[-2:] in allowed, command
    pins = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    exact = [line for line in pins if re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert len(exact) == len([line for line in pins if not line.startswith("#")])
    assert sum(line.startswith("torch==") for line in exact) == 1  # what `grep` finds for torch.txt


def test_extras_of_the_engines_are_among_the_pins():
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements-cluster.txt").read_text().splitlines()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("slurm", "kubernetes"):
        assert {re.match(r"[\w.-]+", one)[0] for one in extras[extra]} <= pinned


def test_it_does_not_run_as_root():
    last = TEXT[TEXT.rindex("\nFROM ") :]
    assert re.findall(r"^USER (\S+)", last, flags=re.MULTILINE) == ["1000:1000"]
    assert last.index("\nUSER ") > last.rindex("\nRUN ")  # what has to be root comes before


@pytest.mark.parametrize("source", sorted({one for line in re.findall(r"^COPY (?!--from)(.*) \S+$", TEXT, re.MULTILINE)
                                           for one in line.split() if not one.startswith("--")}))  # fmt: skip
def test_what_is_copied_is_there_and_not_ignored(source):
    assert (ROOT / source).exists()
    ignored = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and line[0] != "#"]
    assert not any(fnmatch(source, pattern) for pattern in ignored)


def test_one_version_everywhere():
    assert f"org.opencontainers.image.version={VERSION}" in TEXT
    image = f"replaceme:{VERSION}"
    assert f'container: "docker-daemon:{image}"' in (ROOT / "Snakefile").read_text()
    for name in ("Containerfile", "docs/cluster.md", "profiles/kubernetes/config.yaml"):
        tags = set(re.findall(r"replaceme:\d[\d.]*\d", (ROOT / name).read_text()))
        assert tags == {image}, name
