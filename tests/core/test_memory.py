"""Free memory is what the limits of a job or a container leave of the machine's."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import large_pages
import pytest
from given import FULL
from large_pages import FEW, needs_large_pages

from replaceme.core.memory import free_memory, group_memory, release, unless_full, use_large_pages


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_limit_of_a_job_leaves(tmp_path, monkeypatch, version):
    """That of any group above counts; pages of files that were read make way; where there is no limit, none counts."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/job/step\n" if version == 2 else "5:cpu:/\n4:memory:/job/step\n0::/\n")
    assert group_memory(own, root) == group_memory(tmp_path / "none", root) == float("inf")

    def group(path, limit, used, cached):
        folder = root / ("" if version == 2 else "memory") / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        prefix = "" if version == 2 else "total_"
        (folder / "memory.stat").write_text(f"{prefix}active_file {cached}\n{prefix}inactive_file 1\nother 7\n")

    group("job/step", "max" if version == 2 else 2**63 - 4096, 900, 0)
    assert group_memory(own, root) > 2**62
    group("job", 1000, 900, 200)
    assert group_memory(own, root) == 1000 - 900 + 200 + 1
    group("", 500, 300, 0)  # of a container, whose own group is the root that it sees
    assert group_memory(own, root) == 201
    monkeypatch.setattr("replaceme.core.memory.group_memory", lambda: 201)
    assert free_memory("cpu") == 201


def test_what_refers_to_itself_is_freed():
    """As blocks of a model do, to which collections come late."""

    class Block:
        pass

    block = Block()
    block.own, seen = block, weakref.ref(block)
    del block
    assert seen() is not None
    release("cpu")
    assert seen() is None


@pytest.mark.parametrize("said", FULL)
def test_what_a_gpu_has_no_room_for_any_more_is_done_otherwise(said, caplog):
    def full():
        raise RuntimeError(said)

    assert unless_full(lambda: 1, lambda: 2, "x", "kept elsewhere") == 1 and not caplog.text
    assert unless_full(full, lambda: 2, "x", "kept elsewhere") == 2
    assert caplog.messages == [f"x: the GPU had room, which something else has taken since ({said}); kept elsewhere"]


def test_other_errors_are_not_taken_for_a_full_gpu():
    def wrong():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        unless_full(wrong, lambda: 2, "x", "kept elsewhere")


def test_what_the_user_says_of_large_pages_stays(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


@needs_large_pages
def test_large_tensors_of_a_command_lie_on_large_pages():
    program = """
import contextlib
from large_pages import faults
from replaceme.cli import main
with contextlib.suppress(SystemExit):
    main(["--version"])
print(faults())
"""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment["PYTHONPATH"] = str(Path(large_pages.__file__).parent)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert int(found.stdout.split()[-1]) < FEW
