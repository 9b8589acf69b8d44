"""Steps that run as forks of the step server: they end, write and die as steps of their own process do."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import large_pages
import psutil
import pytest
from large_pages import FEW, needs_large_pages
from workflow.conftest import copy_tree

from replaceme.workflow import step_server
from replaceme.workflow.step_client import VARIABLE
from replaceme.workflow.step_server import StepServer

BIN = Path(sys.executable).parent
# as `step_server` is started, but without what takes seconds to import
LIGHT = """
import socket, sys, time
from replaceme.core import fresh
from replaceme.workflow import step_server
from replaceme.steps import check, model, verify
step_server.PLAIN_LIBRARIES, step_server.PRELOADED = (), ("replaceme.cli", "colorsys")
check.run = lambda args: (print(args.config, flush=True), time.sleep(float(args.config)))
model.run = lambda args: print("in the server")
verify.run = lambda args: print(args.model, fresh.is_as_imported(), "colorsys" in sys.modules)
"""
SERVE = """
step_server.serve(*(socket.socket(fileno=int(one)) for one in sys.argv[1:3]), sys.argv[3], int(sys.argv[4]))
"""


# a library makes a tensor when it is imported, and a step a large one
WITH_TENSORS = """
from large_pages import faults
step_server.PLAIN_LIBRARIES = ("makes_a_tensor",)
check.run = lambda args: print(faults())
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The path and the process of a server whose step `check` sleeps as many seconds as it is told."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with serving(tmp_path) as given:
        yield given


@contextlib.contextmanager
def serving(tmp_path, more=""):
    (tmp_path / "s").mkdir()
    path = str(tmp_path / "s/socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as plain:
        listener.bind(path)
        plain.bind(str(tmp_path / "s/plain"))
        listener.listen()
        plain.listen()
        files = [listener.fileno(), plain.fileno()]
        command = [sys.executable, "-c", LIGHT + more + SERVE, *map(str, files), path, str(os.getpid())]
        process = subprocess.Popen(command, pass_fds=files)
    waited(lambda: psutil.Process(process.pid).children())  # the server of checks
    try:
        yield path, process
    finally:
        process.kill()
        process.wait()


def step(server, *arguments, **options):
    """A step that is started with the server in its environment."""
    environment = {**os.environ, VARIABLE: server[0], "REPLACEME_TEST_WARM": ""}
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen([str(BIN / "replaceme"), *arguments], **kept, **options)


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def children(server):
    """Those of the server, but the one that checks are forked from, which is its first."""
    return psutil.Process(server[1].pid).children()[1:]


def waited(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_step_runs_in_the_server_and_ends_as_it_would(server, tmp_path):
    assert ended(step(server, "check", "0", cwd=tmp_path)) == (0, "0\n", "")
    code, out, err = ended(step(server, "tokens", "gone.json", "--dataset", "micro", "--out", "t", cwd=tmp_path))
    assert (code, out) == (1, "") and "gone.json" in err and err.startswith("replaceme: error:")
    code, _, err = ended(step(server, "check", "--nothing"))
    assert code == 2 and "--nothing" in err


@needs_large_pages
def test_large_tensors_of_a_step_lie_on_large_pages(tmp_path, monkeypatch):
    """torch decides at the first tensor, which is the server's."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(large_pages.__file__).parent}")
    (tmp_path / "makes_a_tensor.py").write_text("import torch\n\ntorch.ones(1)\n")
    with serving(tmp_path, WITH_TENSORS) as server:
        code, out, err = ended(step(server, "check", "0"))
    assert code == 0 and int(out) < FEW, err


def test_a_check_is_forked_from_a_process_with_nothing_but_plain_libraries(server, tmp_path):
    """While the server goes on, and without that process in one of its own."""
    assert ended(step(server, "verify", "here")) == (0, "here True False\n", "")
    asking = step(server, "check", "60")
    waited(lambda: children(server))
    assert ended(step(server, "verify", "again"))[0] == 0
    [plain] = [one for one in psutil.Process(server[1].pid).children() if one not in children(server)]
    plain.kill()
    code, _, err = ended(step(server, "verify", str(tmp_path / "gone")))
    assert code == 1 and "gone" in err, "as a process of its own, where it is not as above"
    assert asking.poll() is None
    asking.kill()
    asking.communicate()


def test_what_needs_no_libraries_waits_for_nobody(server, tmp_path):
    """The server may be importing for ten seconds when the first job of a run comes."""
    os.kill(server[1].pid, signal.SIGSTOP)
    try:
        code, out, err = ended(step(server, "model", "./none", "--out", "m.json", cwd=tmp_path))
    finally:
        os.kill(server[1].pid, signal.SIGCONT)
    assert code == 1 and out == "" and "none: no such" in err


def test_several_at_once(server):
    steps = [step(server, "check", "60") for _ in range(4)]
    waited(lambda: len(children(server)) == 4)
    for one in steps:
        one.kill()
        assert ended(one)[0] == -signal.SIGKILL
    waited(lambda: not children(server))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_step_leaves_no_child(server, number):
    asking = step(server, "check", "60")
    waited(lambda: children(server))
    asking.send_signal(number)
    assert asking.wait(timeout=30) == -number
    waited(lambda: not children(server))
    assert ended(step(server, "check", "0"))[0] == 0


def test_a_killed_child_is_a_killed_step(server):
    asking = step(server, "check", "60")
    waited(lambda: children(server))
    children(server)[0].kill()
    assert ended(asking)[0] == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crashed_child_is_run_again_as_a_process_of_its_own(server, tmp_path, number):
    """There `check` reads the file that it is given, and the fork only sleeps as long as it is told."""
    asking = step(server, "check", "60", cwd=tmp_path)
    assert asking.stdout.readline() == "60\n"
    children(server)[0].send_signal(number)
    code, _, err = ended(asking)
    assert code == 1 and f"check crashed ({number.name}) as a fork" in err
    assert "Fatal Python error" in err  # where, by the fork itself
    assert "replaceme: error: 60" in err  # of the process of its own: there is no such config


def test_a_step_outlives_no_server_and_does_without_one(server, tmp_path):
    asking = step(server, "check", "60")
    waited(lambda: children(server))
    server[1].kill()
    code, _, err = ended(asking)
    assert code == 74 and "the step server has died; run again" in err
    assert "gone.yaml: no such file" in ended(step(server, "check", "gone.yaml", cwd=tmp_path))[2]


def test_the_server_ends_with_who_started_it(tmp_path):
    """Killed, without a word to it; its folder goes too."""
    text = (
        "import time; from replaceme.workflow import step_server as s\n"
        "one = s.StepServer(); one.start(); print(one.path, one._process.pid, flush=True); time.sleep(60)"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | {"TMPDIR": str(tmp_path)}
    starter = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=environment)
    path, number = starter.stdout.readline().split()
    assert psutil.pid_exists(int(number))
    starter.kill()
    starter.communicate()
    waited(lambda: not psutil.pid_exists(int(number)) or psutil.Process(int(number)).status() == "zombie")
    assert not Path(path).parent.exists()


def started(monkeypatch, tmp_path, text):
    """Return a server whose process runs `text` first and imports nothing ahead."""
    monkeypatch.delenv(VARIABLE, raising=False)
    text = f"from replaceme.workflow import step_server as s; s.PLAIN_LIBRARIES = s.PRELOADED = ()\n{text}\n"
    text += "s.serve(*(s.socket.socket(fileno=int(n)) for n in s.sys.argv[1:3]), s.sys.argv[3], int(s.sys.argv[4]))"
    popen = subprocess.Popen
    monkeypatch.setattr(
        step_server.subprocess, "Popen", lambda command, **more: popen([command[0], "-c", text, *command[3:]], **more)
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one = StepServer()
    one.start()
    return one


def test_a_server_told_to_end_while_it_forks_ends(monkeypatch, tmp_path):
    """Python swallows an exception of a signal's handler there, as `sys.exit` would raise."""
    signalled = "s.os.register_at_fork(after_in_parent=lambda: s.os.kill(s.os.getpid(), s.signal.SIGTERM))"
    one = started(monkeypatch, tmp_path, signalled)
    assert one._process.wait(timeout=30) == 0 and not list(tmp_path.iterdir())
    one.stop()


def test_a_server_that_does_not_end_is_killed(monkeypatch, tmp_path):
    one = started(monkeypatch, tmp_path, "")
    monkeypatch.setattr(step_server, "ENDING", 0.2)
    monkeypatch.setattr(one._process, "terminate", lambda: None)
    one.stop()
    assert one._process.returncode == -signal.SIGKILL and not list(tmp_path.iterdir())


def test_a_long_folder_for_temporary_files_is_no_trouble(monkeypatch, tmp_path, caplog):
    """The path of a socket has 107 bytes at most; without a server steps run by themselves."""
    monkeypatch.delenv(VARIABLE, raising=False)
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    one = StepServer()
    one.start()
    one.stop()
    assert one.path.startswith("/tmp/replaceme-steps-") and not Path(one.path).parent.exists()
    monkeypatch.setattr(step_server, "_short_folder", lambda: str(long))
    two = StepServer()
    two.start()
    two.stop()
    assert two.path is None and "no process that steps are forked from" in caplog.text and not list(long.iterdir())


def test_none_is_started_where_the_variable_is_set(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    one = StepServer()
    one.start()
    one.stop()
    assert one.path is None


def test_what_is_imported_ahead_can_be():
    """A name that is wrong would cost each step its import, and nothing else: nobody would notice."""
    assert all(importlib.util.find_spec(name) for name in (*step_server.PLAIN_LIBRARIES, *step_server.PRELOADED))
    assert not any("replaceme" in name for name in step_server.PLAIN_LIBRARIES)


# Snakemake without what the tests' own server lends to jobs, and the number of its process
RUN = "# warm\nimport os, sys; del os.environ['REPLACEME_TEST_WARM']; from snakemake.cli import main\n"
RUN += "open('number', 'w').write(str(os.getpid())); main(sys.argv[1:])"


def _below(process):
    """The processes that one has started, and they; none once it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_a_run_starts_one_and_leaves_none(project, tmp_path):
    """Jobs run as children of the server, which is gone with Snakemake; it imports less than for a user. The server of
    checks is a child of it too.
    """
    code = copy_tree(project.code, tmp_path / "code")
    file = code / "replaceme/workflow/step_server.py"
    text = file.read_text()
    assert text.count("PRELOADED = (") == text.count("PLAIN_LIBRARIES = (") == 1
    text = text.replace("PRELOADED = (", 'PRELOADED = ("replaceme.cli",) or (')
    file.write_text(text.replace("PLAIN_LIBRARIES = (", 'PLAIN_LIBRARIES = ("torch",) or ('))
    project = replace(project, code=code)
    environment, wanted = project.environment(TMPDIR=str(project.folder)), "results/tiny.v1/plain/tokens.safetensors"
    del environment[VARIABLE]
    command = [sys.executable, "-c", RUN, *project.command(wanted)[1:]]
    run = subprocess.Popen(command, cwd=project.folder, env=environment, stderr=subprocess.DEVNULL)
    number, servers, served = project.folder / "number", set(), set()
    waited(lambda: run.poll() is not None or (number.is_file() and number.read_text()))
    snakemake = psutil.Process(int(number.read_text()))
    while run.poll() is None:
        for process in _below(snakemake):
            try:
                if "replaceme.workflow.step_server" in process.cmdline():
                    (served if process.parent().pid in servers else servers).add(process.pid)
            except psutil.Error:  # it has ended
                continue
        time.sleep(0.02)
    assert run.returncode == 0 and (project.folder / wanted).is_file()
    assert len(servers) == 1 and len(served) == 2
    assert not any(psutil.pid_exists(number) for number in servers | served)
    assert not list(project.folder.glob("replaceme-steps-*"))
