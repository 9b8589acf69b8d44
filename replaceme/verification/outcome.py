"""The outcome of a check in verify.json: passed, failed or not checked, the latter two with a reason."""

from collections.abc import Callable
from typing import Any

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.redaction import redacted

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"


class NotChecked(Exception):
    """A check that cannot be made here; the message says why."""


def outcome(check: Callable[..., dict[str, Any] | None], *arguments: Any) -> dict[str, Any]:
    """Run a check, which raises ReplaceMeError for a fault and returns its measurements, if any."""
    try:
        return {"outcome": PASSED, **(check(*arguments) or {})}
    except NotChecked as reason:
        return not_checked(str(reason))
    except ReplaceMeError as error:
        return {"outcome": FAILED, "reason": redacted(in_one_line(error))}


def not_checked(reason: str) -> dict[str, Any]:
    """Return the outcome of a check that was not made."""
    return {"outcome": NOT_CHECKED, "reason": redacted(reason)}
