"""Conversations of a data set in the form that chat templates take, and as such a template writes them."""

from typing import Any

from replaceme.config import CalibrationConfig
from replaceme.errors import ReplaceMeError, first_line, printable

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def messages_of(record: dict, config: CalibrationConfig) -> list[dict[str, str]]:
    """The conversation of a record as a list of {role, content}."""
    turns = column_of(record, config.conversations, config.dataset) or []
    if not isinstance(turns, list):
        kind = type(turns).__name__
        raise ReplaceMeError(f"{config.dataset}: column {config.conversations!r} holds {kind}, not a list of turns")
    return [_message(turn, config.dataset) for turn in turns]


def column_of(record: dict, column: str, dataset: str) -> Any:
    """A value of a record; raises ReplaceMeError with the names that it has where it lacks this one."""
    if column not in record:
        raise ReplaceMeError(f"{dataset}: no column {column!r}; its columns: {', '.join(map(printable, record))}")
    return record[column]


def chat(messages: list[dict[str, str]], tokenizer: Any, dataset: str, answer: bool = False) -> str:
    """A conversation as the model's chat template writes it, with `answer` up to where the model should speak."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer) if messages else ""
    except Exception as error:  # templates raise jinja2's errors, on roles that do not alternate for instance
        raise ReplaceMeError(
            f"{dataset}: the model's chat template refuses a conversation ({first_line(error)})"
        ) from error


def _message(turn: Any, dataset: str) -> dict[str, str]:
    """One turn in the chat template's form, from {role, content} or the {from, value} of ShareGPT-like sets."""
    if not isinstance(turn, dict):
        raise ReplaceMeError(f"{dataset}: a turn needs role/content or from/value, found {type(turn).__name__}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES or content is None:
        raise ReplaceMeError(f"{dataset}: a turn needs role/content or from/value, found {sorted(turn)} ({role!r})")
    return {"role": ROLES[role], "content": content}
