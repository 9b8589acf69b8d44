"""Truncated files and flipped bits: a step that reads one says so in one line or ends as without it, never otherwise.

In a workflow the damaged file is put aside, and the step that makes it makes it again.
"""

import shutil
from collections import Counter

import pytest
from chaos.conftest import cost, restored
from chaos.test_kills_of_steps import remove

from replaceme.core.files import RESULTS_VARIABLE
from replaceme.workflow.set_aside import DAMAGED

DAMAGES = 80
CHECKED = (".safetensors", ".json")  # tables, texts and figures carry no digest
WHOLE = ("merge", "heal", "rows", "prune")  # whose output is a folder, every file of which is checked


def intermediates(undisturbed):
    """Return (file, a step that reads it) for all that one step makes and another reads."""
    return [
        (name, reader)
        for maker in undisturbed.steps
        for name in sorted(maker.outputs)
        if name.endswith(CHECKED) or maker.argv[0] in WHOLE
        for reader in undisturbed.steps
        if reader.reads(name) and reader is not maker
    ]


def damage(path, chance):
    """Flip one bit of a file, or cut it short; returns what was done."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.25:
        path.write_bytes(content[:place])
        return "truncated"
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return "flipped"


def damage_and_read(forking, undisturbed, folder, one, chance):
    """Damage a file and return (outcome, faults)."""
    name, reader = one
    maker = undisturbed.makes(name)
    kind = damage(folder / name, chance)
    remove(folder, reader.outputs)
    answer = forking.run(reader.argv, folder, environment={RESULTS_VARIABLE: "."})
    if answer.status == 0:
        undisturbed.restore(folder, {name, *_speeds(reader)})
        return f"{kind}, harmless", [f"{name}: used, and {other} differs" for other in restored(undisturbed, folder)]
    wrong = [] if answer.status == 1 and len(answer.lines) == 1 else [answer.error]
    blamed = maker.out if maker.argv[0] in WHOLE and name.startswith(f"{maker.out}/") else name
    if blamed not in "".join(answer.lines) or not (folder / f"{blamed}{DAMAGED}").exists():
        wrong.append(f"{name} is not what is blamed: {answer.lines}")
    for step in (maker, reader):
        again = forking.run(step.argv, folder, environment={RESULTS_VARIABLE: "."})
        wrong += [] if again.status == 0 else [again.error]
        undisturbed.restore(folder, _speeds(step))  # before a table reads them
    aside = folder / f"{blamed}{DAMAGED}"
    if aside.is_dir():
        shutil.rmtree(aside)
    aside.unlink(missing_ok=True)
    wrong += [f"{other}: differs after another run" for other in restored(undisturbed, folder)]
    return f"{kind}, refused", wrong


def _speeds(step):
    """Return the measurements that differ from run to run, and would make tables differ."""
    return step.outputs if step.argv[0] == "speed" else set()


def damage_many(forking, undisturbed, folder, chance, count):
    """Damage many files and let their readers run; returns outcomes and faults."""
    outcomes, wrong = Counter(), []
    everything = intermediates(undisturbed)
    costs = [cost(undisturbed.makes(name)) + cost(reader) for name, reader in everything]
    for one in chance.choices(everything, [1 / seconds for seconds in costs], k=count):
        outcome, problems = damage_and_read(forking, undisturbed, folder, one, chance)
        outcomes[outcome] += 1
        wrong += [f"{one[0]}, read by {one[1].name}: {problem}" for problem in problems]
        if problems:
            folder = undisturbed.copy(folder.with_name(f"{folder.name}-again"))
    return outcomes, wrong


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_every_intermediate(forking, undisturbed, disturbed, chance, figures):
    outcomes, wrong = damage_many(forking, undisturbed, disturbed, chance, DAMAGES)
    figures["damage"] = {
        "files": sum(outcomes.values()),
        "by_outcome": dict(sorted(outcomes.items())),
        "failures": wrong,
    }
    assert not wrong
