"""A sample of what `make chaos` does at length: kills, damage and disks, from a model to a merged one."""

import subprocess

from chaos.conftest import SAMPLED
from chaos.test_damage import damage_many
from chaos.test_disks import limit_many, refused
from chaos.test_kills_of_steps import kill_many

from replaceme.core.files import RESULTS_VARIABLE

KILLS, DAMAGES, LIMITS = len(SAMPLED), 6, 4


def test_kills(forking, undisturbed, disturbed, chance):
    _, steps, lost, wrong = kill_many(forking, undisturbed, disturbed, chance, KILLS)
    assert not wrong
    assert len(lost) == KILLS and len(steps) == len(SAMPLED)


def test_damage(forking, undisturbed, disturbed, chance):
    outcomes, wrong = damage_many(forking, undisturbed, disturbed, chance, DAMAGES)
    assert not wrong
    assert sum(count for outcome, count in outcomes.items() if "refused" in outcome) > DAMAGES / 2


def test_a_model_that_changed_after_its_record(forking, undisturbed, disturbed):
    """Noticed before anything is measured; a model of the user's is not put aside."""
    weights = disturbed / "models/tiny/first/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4
    weights.write_bytes(content)
    argv = ["speed", "tiny.v1/model.json", "--prompt-tokens", "8", "--new-tokens", "2", "--out", "speed.json"]
    answer = forking.run(argv, disturbed, environment={RESULTS_VARIABLE: "."})
    assert answer.status == 1 and len(answer.lines) == 1, answer.error
    assert "models/tiny/first/model.safetensors" in answer.lines[0] and "tiny.v1/model.json" in answer.lines[0]
    assert weights.is_file() and not (disturbed / "speed.json").exists()


def test_files_that_may_not_grow(forking, undisturbed, disturbed, chance):
    _, wrong = limit_many(forking, undisturbed, disturbed, chance, LIMITS)
    assert not wrong


def test_a_folder_that_can_only_be_read(forking, undisturbed, mounted):
    folder = undisturbed.copy(mounted("64m") / "project")
    subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
    for name in ("model", "tokens", "merge"):
        step = next(step for step in undisturbed.steps if step.argv[0] == name)
        answer = forking.run(step.argv, folder)
        assert not refused(answer, undisturbed, folder) and "Read-only file system" in answer.error
