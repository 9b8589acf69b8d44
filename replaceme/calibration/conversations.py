"""Convert conversations of a data set to the form of chat templates, and render them by a template."""

from typing import Any

from replaceme.calibration.samples import column_of
from replaceme.config.calibrations import CalibrationConfig
from replaceme.core.errors import UnusableError, in_one_line
from replaceme.core.templates import as_text

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def messages_of(record: dict, config: CalibrationConfig) -> list[dict[str, str]]:
    """Return the conversation of a record as a list of {role, content}; raises UnusableError where it has none."""
    turns = column_of(record, config.conversations, config.dataset)
    what = f"{config.dataset}: column {config.conversations!r} holds"
    if turns is None or turns == []:
        raise UnusableError(f"{what} no turns; name another one by `conversations`")
    if not isinstance(turns, list):
        raise UnusableError(f"{what} {type(turns).__name__}, not a list of turns")
    return [_message(turn, config.dataset) for turn in turns]


def chat(messages: list[dict[str, str]], tokenizer: Any, dataset: str, answer: bool = False) -> str:
    """Render a conversation by the model's chat template, with `answer` up to where the model should speak.

    Raises UnusableError where the template refuses it.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # templates raise jinja2's errors, on roles that do not alternate for instance
        raise UnusableError(
            f"{dataset}: the model's chat template refuses a conversation ({in_one_line(error)})"
        ) from error


def _message(turn: Any, dataset: str) -> dict[str, str]:
    """Return one turn in the chat template's form, from {role, content} or the {from, value} of ShareGPT-like sets."""
    needs = f"{dataset}: a turn needs role/content or from/value, found"
    if not isinstance(turn, dict):
        raise UnusableError(f"{needs} {type(turn).__name__}")
    # Parquet has null for what other turns hold
    role, content = (_first_of(turn, *names) for names in (("role", "from"), ("content", "value")))
    role = as_text(role, "role", dataset)
    if role not in ROLES or content is None:
        raise UnusableError(f"{needs} {sorted(turn)} ({role!r})")
    # some templates take lists of parts
    return {
        "role": ROLES[role],
        "content": content if isinstance(content, list) else as_text(content, "content", dataset),
    }


def _first_of(turn: dict, *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)
