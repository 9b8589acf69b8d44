"""Remove secrets from texts: keys and passwords of the environment, and paths of private files."""

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
    """Return the text without values of variables that hold keys, users in addresses, and strings that look like a Hub
    token.
    """
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
        """Return the line, a traceback included."""
        return redacted(super().format(record))


def published(value: Any) -> Any:
    """Return a record fit to leave this machine: paths outside of the working folder keep only their last name.

    Full paths would reveal a home or a project; hashes identify the files.
    """
    if isinstance(value, dict):
        return {key: published(one) for key, one in value.items()}
    if isinstance(value, list):
        return [published(one) for one in value]
    if not isinstance(value, str) or not value.startswith(("/", "~", "../")):
        return value
    return Path(value).name or value
