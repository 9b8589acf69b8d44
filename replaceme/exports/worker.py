"""Run one program on a model folder: `python worker.py FILE WORK`, in a process and with an interpreter of its own.

FILE is a file of this folder with a function `measure`, WORK holds `question.json` and takes `answer.json`. No file
that runs here imports replaceme, which that interpreter need not have.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path


def main(file: str, work: Path) -> int:
    """Write the answer of `measure`, or the reason why it has none: {"error": type and message, whole}."""
    spec = importlib.util.spec_from_file_location("program", file)
    program = importlib.util.module_from_spec(spec)
    question = json.loads((work / "question.json").read_text(encoding="utf-8"))
    try:
        spec.loader.exec_module(program)
        answer = program.measure(**question, work=work)
    except Exception as error:  # each program raises its own
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    (work / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
    return int("error" in answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
