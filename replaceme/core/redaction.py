"""What is never shown or kept: keys and passwords of the environment, and where somebody's files lie."""

import logging
import os
import re
from pathlib import Path
from typing import Any

# names of variables that hold what opens something, such as PGPASSWORD and MYSQL_PWD; PWD alone is the working folder
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|[A-Z]*PASSWORD|[A-Z]*PASSWD|(SSH)?PASS|PASSPHRASE|CREDENTIALS?"
    r"|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH|KEY)(_|$)|_(PAT|PWD)(_|$)",
    re.IGNORECASE,
)
SHORTEST = 8  # characters; shorter values are words, which stand in any text
USER = re.compile(r"(?<=://)[^/\s]+@")  # of an address: the user and the password, which may hold an @ too
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
HIDDEN = "***"


def redacted(text: str) -> str:
    """The text without values of variables that hold keys, users in addresses, and what looks like a Hub token."""
    values = {value for name, value in os.environ.items() if SECRET.search(name) and _could_open(value)}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return HUB_TOKEN.sub(HIDDEN, USER.sub(f"{HIDDEN}@", text))


def _could_open(value: str) -> bool:
    # a folder is none, as in APPTAINER_PWD; Path.is_dir raises for the length of some keys
    return len(value) >= SHORTEST and not os.path.isdir(value)  # noqa: PTH112


class RedactedFormatter(logging.Formatter):
    """Log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, a traceback included."""
        return redacted(super().format(record))


def published(value: Any) -> Any:
    """A record as it may leave this machine: of paths that lead elsewhere than below the working folder the last name.

    Those name a home or a project; what is meant is told by hashes.
    """
    if isinstance(value, dict):
        return {key: published(one) for key, one in value.items()}
    if isinstance(value, list):
        return [published(one) for one in value]
    if not isinstance(value, str) or not value.startswith(("/", "~", "../")):
        return value
    return Path(value).name or value
