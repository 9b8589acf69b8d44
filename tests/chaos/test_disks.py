"""Full disks and folders that cannot be written: one line, the old outputs as they were, nothing beside them."""

import os
import shutil
from collections import Counter

import pytest
from chaos.conftest import contents, one_of, restored

LIMITS = 60


def refused(answer, undisturbed, folder):
    """Return the faults in how a step handled a failed write."""
    wrong = []
    lines = answer.lines
    # a step may see beforehand that there is no room
    told = len(lines) == 1 and ("GB are free; " in lines[0] or ("cannot write" in lines[0] and "run again" in lines[0]))
    if answer.status != 1 or not told:
        wrong.append(f"exit code {answer.status}: {answer.error}")
    wrong += [f"{name}: {why}" for name, why in differences(undisturbed, folder)]
    return wrong


def differences(undisturbed, folder):
    """Yield files that are not as they were, and those that should not be."""
    found = contents(folder)
    for name in found.keys() | undisturbed.files.keys():
        if found.get(name) != undisturbed.files.get(name):
            yield name, "left behind" if name not in undisturbed.files else "changed"


def limit_many(forking, undisturbed, folder, chance, count):
    """Run steps whose files may not grow beyond some size, so that a write fails midway as on a full disk."""
    outcomes, wrong = Counter(), []
    writers = [step for step in undisturbed.steps if step.argv[0] != "publish"]
    while sum(outcomes.values()) < count:
        step = one_of(writers, chance)
        largest = max((undisturbed.folder / name).stat().st_size for name in step.outputs)
        answer = forking.run(step.argv, folder, file_size=chance.randrange(largest))
        outcomes[step.argv[0]] += 1
        problems = refused(answer, undisturbed, folder)
        again = forking.run(step.argv, folder)
        problems += [] if again.status == 0 else [again.error]
        if step.argv[0] == "speed":
            undisturbed.restore(folder, step.outputs)
        problems += [f"{name}: differs after another run" for name in restored(undisturbed, folder)]
        wrong += [f"{step.name}: {problem}" for problem in problems]
        if problems:
            folder = undisturbed.copy(folder.with_name(f"{folder.name}-again"))
    return outcomes, wrong


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_many_limits(forking, undisturbed, disturbed, chance, figures):
    outcomes, wrong = limit_many(forking, undisturbed, disturbed, chance, LIMITS)
    figures["writes that fail"] = {"steps": sum(outcomes.values()), "by_step": dict(outcomes), "failures": wrong}
    assert not wrong


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_disk_that_is_full_to_the_last_page(forking, undisturbed, mounted, chance, figures):
    """A real file system, with room for some of what each step writes and not for all of it."""
    wrong, refusals, folder = [], 0, undisturbed.copy(mounted("64m") / "project")
    writers = [step for step in undisturbed.steps if step.argv[0] not in ("publish", "prune", "heal")]
    for step in writers:
        fill = folder.parent / "fill"
        free = shutil.disk_usage(folder).free
        largest = sum((undisturbed.folder / name).stat().st_size for name in step.outputs)
        with fill.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 4096 * chance.randint(0, largest // 8192))
        answer = forking.run(step.argv, folder)
        refusals += answer.status != 0
        problems = refused(answer, undisturbed, folder) if answer.status != 0 else []
        fill.unlink()
        again = forking.run(step.argv, folder)
        problems += [] if again.status == 0 else [again.error]
        if step.argv[0] == "speed":
            undisturbed.restore(folder, step.outputs)
        problems += [f"{name}: differs after another run" for name in restored(undisturbed, folder)]
        wrong += [f"{step.name}: {problem}" for problem in problems]
    figures["full disks"] = {"steps": len(writers), "refusals": refusals, "failures": wrong}
    assert not wrong and refusals > len(writers) / 4
