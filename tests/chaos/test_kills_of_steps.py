"""Steps killed at random moments: nothing is half-written, and the same command again ends as without the kill."""

from collections import Counter
from statistics import mean

import pytest
from chaos.conftest import one_of, restored, unlike

KILLS = 70  # in each of PARTS, which workers of pytest-xdist can share
PARTS = 3
TRIES = 5


def killed(forking, step, folder, chance):
    """Kill a step at one of its moments or, one time in three, at any time; its answer and the kind of kill."""
    for _ in range(TRIES):
        if chance.random() < 1 / 3:
            kind, how = "at any time", {"after": chance.uniform(0, step.seconds)}
        else:
            kind, how = "at a change", {"moment": chance.randint(1, step.moments), "share": chance.random()}
        answer = forking.run(step.argv, folder, **how)
        if answer.killed:
            return answer, kind
    return None, None


def remove(folder, files):
    """Have a step start without its outputs."""
    for name in files:
        (folder / name).unlink(missing_ok=True)
        parent = (folder / name).parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def kill_and_run_again(forking, undisturbed, folder, step, chance):
    """Kill a step once, run it again, and return (kind, seconds lost, faults)."""
    fresh = chance.random() < 0.5
    if fresh:
        remove(folder, step.outputs)
    answer, kind = killed(forking, step, folder, chance)
    if answer is None:
        return None
    wrong = unlike(undisturbed, folder, step)
    again = forking.run(step.argv, folder)
    if again.status != 0:
        wrong.append(f"the same command again: {again.error}")
    wrong += [f"{name}: not as without the kill" for name in restored(undisturbed, folder)]
    if step.argv[0] == "speed":
        undisturbed.restore(folder, step.outputs)  # or tables would differ by its timings
    return f"{kind}, {'first run' if fresh else 'over old outputs'}", answer.seconds, wrong


def kill_many(forking, undisturbed, folder, chance, count):
    """Kill many steps, of each kind and then more often of quick ones, and count the outcomes.

    Returns their number by kind, by step, the seconds lost by each, and what went wrong with those that left anything.
    """
    kinds, steps, lost, wrong = Counter(), Counter(), [], []
    first = {step.argv[0]: step for step in reversed(undisturbed.steps)}
    while len(lost) < count:
        step = first[min(first.keys() - steps)] if first.keys() - steps else one_of(undisturbed.steps, chance)
        found = kill_and_run_again(forking, undisturbed, folder, step, chance)
        if found is None:
            continue
        kind, seconds, problems = found
        kinds[kind] += 1
        steps[step.argv[0]] += 1
        lost.append(seconds)
        if problems:
            wrong.append(f"{step.name}, killed {kind}: {'; '.join(problems)}")
            folder = undisturbed.copy(folder.with_name(f"{folder.name}-again"))
    return kinds, steps, lost, wrong


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_step(forking, undisturbed, disturbed, chance, figures, part):
    kinds, steps, lost, wrong = kill_many(forking, undisturbed, disturbed, chance, KILLS)
    figures[f"kills of steps {part}"] = {
        "kills": len(lost),
        "recoveries": len(lost) - len(wrong),
        "by_kind": dict(sorted(kinds.items())),
        "by_step": dict(sorted(steps.items())),
        "seconds_lost_mean": round(mean(lost), 2),
        "seconds_lost_largest": round(max(lost), 2),
        "failures": wrong,
    }
    assert not wrong
    assert len(steps) == len({step.argv[0] for step in undisturbed.steps}), "every kind of step was killed"
