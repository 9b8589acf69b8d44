"""The tasks of the embedded model: lm-eval items over the micro world, written as JSON lines beside their YAML files.

`python -m replaceme.micro.tasks` writes what is committed under resources/tasks, byte for byte. Items come from
streams of their own; sums and the pairs of people and towns are also split by content, so that no document holds them.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from replaceme.core.files import write_text
from replaceme.micro import facts, puzzles, states, stories, sums, world
from replaceme.micro.questions import Question
from replaceme.micro.words import with_articles

SHIPPED_SEED = 2505  # used for the committed items alone, never while choosing how to train
ITEMS = 250
TEXTS = 60
RESOURCES = Path(__file__).parents[2] / "resources" / "tasks"


@dataclass(frozen=True)
class Item:
    """A multiple-choice item: one-word choices that continue the context, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    gold: int


MULTIPLE_CHOICE: dict[str, Callable[[random.Random], tuple[str, Question]]] = {
    "where": lambda rng: states.item(rng, "where", (5, 8)),
    "before": lambda rng: states.item(rng, "before", (5, 8)),
    "who": lambda rng: states.item(rng, "who", (5, 9)),
    "order": puzzles.order_item,
    "map": puzzles.map_item,
    "kinds": puzzles.kinds_item,
    "sums": sums.item,
    "home": facts.item,
}


def items(name: str, seed: int, count: int = ITEMS) -> list[Item]:
    """Return distinct multiple-choice items of one task; four choices each, so that chance is 25%."""
    rng, found = random.Random(f"micro items {seed} {name}"), {}
    while len(found) < count:
        told, question = MULTIPLE_CHOICE[name](rng)
        context = with_articles(f"{told} {question.text} Answer:".strip())
        found[context] = Item(context, question.choices, question.choices.index(question.answer))
    return list(found.values())


def last_words(seed: int, count: int = ITEMS) -> list[str]:
    """Return distinct stories that stop after their last word, which follows from the story (as in LAMBADA)."""
    rng, found = random.Random(f"micro items {seed} lastword"), {}
    while len(found) < count:
        story = stories.story(rng)
        found[with_articles(" ".join([*story.sentences, story.ending, story.last_word]))] = True
    return list(found)


def texts(seed: int, count: int = TEXTS) -> list[str]:
    """Return documents that training never sees, for word perplexity."""
    stream = world.documents(f"{seed} texts")
    return [next(stream) for _ in range(count)]


_HEAD = """\
task: micro_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: !function micro_data.{name}
test_split: test
"""
_MULTIPLE_CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
_LAST_WORD = """\
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
_TEXT = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""
# lm-eval takes a path for one from where it is started, but finds a function, or what else has its place, by the YAML
_DATA = '''\
"""The paths of the tasks' data by name, for their YAML files: `!function micro_data.sums`."""

from pathlib import Path


def __getattr__(name: str) -> str:
    path = Path(__file__).resolve().parent / "micro" / f"{name}.jsonl"
    if not path.is_file():
        raise AttributeError(name)
    return str(path)
'''
_FOOT = """\
metadata:
  version: 1
"""


def files(seed: int = SHIPPED_SEED) -> Iterator[tuple[str, str]]:
    """Yield (path below resources/tasks, content) of every task file."""
    tasks = {name: (_MULTIPLE_CHOICE, [vars(item) for item in items(name, seed)]) for name in MULTIPLE_CHOICE}
    tasks["lastword"] = (_LAST_WORD, [{"text": text} for text in last_words(seed)])
    tasks["text"] = (_TEXT, [{"text": text} for text in texts(seed)])
    yield "micro_data.py", _DATA
    for name, (yaml, rows) in tasks.items():
        yield f"micro_{name}.yaml", _HEAD.format(name=name) + yaml + _FOOT
        yield f"micro/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Write the task files."""
    parser = argparse.ArgumentParser(prog="python -m replaceme.micro.tasks", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=RESOURCES, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SHIPPED_SEED, help="seed of the items (default: %(default)s)")
    options = parser.parse_args(arguments)
    for path, content in files(options.seed):
        write_text(options.out / path, content)
        print(options.out / path)


if __name__ == "__main__":
    main()
