"""Choose enough examples for a prompt, and never the item itself.

lm-eval takes an item out of its own examples only where `fewshot_split` is named and is the `test_split`. A task with a
test split alone draws from that split without a word, a validation split that is evaluated may be named, and one file
may stand behind two splits. Where none of this happens the examples are lm-eval's own.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)


def evaluated_split(task: "Task") -> str | None:
    """Return the split of the evaluated items."""
    return task.get_config("test_split") or task.get_config("validation_split")


def examples_split(task: "Task") -> str | None:
    """Return the split that examples are drawn from, None where they are listed in the task."""
    chosen = task.get_config("fewshot_config")
    if getattr(chosen, "split", None) is not None:
        return chosen.split
    if getattr(chosen, "samples", None) is not None:
        return None
    return task.get_config("training_split") or task.get_config("validation_split") or evaluated_split(task)


def from_evaluated(task: "Task") -> str | None:
    """Return a warning if examples come from the evaluated items, else None."""
    split = examples_split(task)
    if not task.get_config("num_fewshot") or split is None or split != evaluated_split(task):
        return None
    return (
        f"evaluation task {task.task_name!r}: its examples are drawn from the split that is evaluated ({split!r}), an "
        "item's own left out; name another `fewshot_split` to keep them apart"
    )


class Examples:
    """A sampler of lm-eval that never draws the evaluated item; `left_out` counts how often it skipped one."""

    def __init__(self, task: "Task") -> None:
        self.task, self.sampler = task, task.sampler
        self.asked: Any = None
        self.left_out = 0
        self._shown: dict[int, Any] = {}

    def set_rnd(self, seed: int | None) -> "Examples":
        """Seed the sampler."""
        self.sampler.set_rnd(seed)
        return self

    def sample(self, n: int, eval_doc: Any = None, **options: Any) -> Sequence[Any]:
        """Draw `n` examples as lm-eval does, without the item itself; fewer where there are no others."""
        drawn = self.sampler.sample(n=n, eval_doc=eval_doc, **options)
        question = self._content(self.asked)
        if not any(self._is_asked(one, question) for one in drawn):
            return drawn
        self.left_out += 1
        pool = self.sampler.df
        others = [one for one in pool if not self._is_asked(one, question)]
        try:
            return self.sampler.replace_df(others).sample(n=min(n, len(others)))
        finally:
            self.sampler.replace_df(pool)

    def _is_asked(self, example: Any, question: Any) -> bool:
        if example == self.asked:
            return True
        if id(example) not in self._shown:
            self._shown[id(example)] = self._content(example)
        return question is not None and self._shown[id(example)] == question

    def _content(self, document: Any) -> tuple[str, str] | None:
        """Return question and answer as the task writes them, None for an example of another form."""
        try:
            question, answer = self.task.doc_to_text(document), self.task.doc_to_target(document)
            choices = self.task.doc_to_choice(document) if self.task.get_config("doc_to_choice") else None
            if choices and isinstance(question, int):
                question = choices[question]
            elif choices and isinstance(answer, int):
                answer = choices[answer]
        except Exception:  # templates and functions of the task, on what they were not made for
            return None
        return str(question), str(answer)


def keep_apart(task: "Task") -> Examples | None:
    """Make a task leave an item out of its own examples; returns None where it shows no examples.

    Raises ReplaceMeError where there are fewer examples than required.
    """
    wanted = task.get_config("num_fewshot") or 0
    if wanted == 0 or not hasattr(task, "sampler"):
        return None
    available, split = len(task.sampler.df), examples_split(task)
    where = f"of split {split!r}" if split else "in its YAML"
    own = split is not None and split == evaluated_split(task)
    if available - own < wanted:
        raise ReplaceMeError(
            f"evaluation task {task.task_name!r}: {wanted} examples asked for, {available} {where}"
            f"{', of which one is the item itself' if own else ''}; lower `fewshot`"
        )
    examples, build = Examples(task), task.fewshot_context

    def fewshot_context(doc: Any, *given: Any, **options: Any) -> Any:
        examples.asked = doc
        return build(doc, *given, **options)

    task.sampler, task.fewshot_context = examples, fewshot_context
    return examples


def tell(task: "Task", examples: Examples | None) -> None:
    """Warn where items were, or could have been, among their own examples."""
    line = from_evaluated(task)
    if line is None and examples is not None and examples.left_out:
        line = (
            f"evaluation task {task.task_name!r}: {examples.left_out} items are among the examples that were drawn for "
            "them, and were left out there; the splits of its data overlap"
        )
    if line is not None:
        log.warning("%s", line)
