"""Users read errors of other libraries in one line."""

import pytest

from replaceme.core.errors import LONGEST, ReplaceMeError, in_one_line
from replaceme.verification import reload_worker as plain
from replaceme.verification.outcome import FAILED, outcome

MANY = ValueError(
    "Class validation error for 'validate_architecture':\n    ValueError: The hidden size (64) is\r\n no multiple"
)
SAID = "Class validation error for 'validate_architecture': ValueError: The hidden size (64) is no multiple"


@pytest.mark.parametrize(
    ("error", "said"),
    [(MANY, SAID), (OSError(), "OSError"), (KeyError("\n"), "'\\n'"), (ValueError("a\x1bb"), "a\\x1bb")],
)
def test_an_error_of_another_library_is_said_whole_in_one_line(error, said):
    assert in_one_line(error) == said


def test_of_a_long_error_both_ends_are_said():
    found = in_one_line(ValueError("first\n" + "x\n" * 10_000 + "last"))
    assert found.startswith("first x") and found.endswith("x last") and len(found) < LONGEST + 10


def test_a_check_that_failed_says_all_lines():
    def check():
        answer = {}
        plain._part(answer, "tokenizer", lambda: (_ for _ in ()).throw(MANY))
        raise ReplaceMeError(answer["tokenizer"])

    assert outcome(check) == {"outcome": FAILED, "reason": SAID}
