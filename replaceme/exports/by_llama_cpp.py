"""llama.cpp: convert the folder to GGUF in float32 by its own script, compute by its server on the CPU.

Both are looked for in the folder LLAMA_CPP (a checkout with its build, or an unpacked release) and on the path.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "LLAMA_CPP"
CONVERTER, SERVER = "convert_hf_to_gguf.py", "llama-server"
INSIDE = ("", "bin", "build/bin")  # of the folder, where its programs lie
KINDS = ("BPE", "Unigram", "WordPiece")  # of tokenizers that a GGUF file can hold
FORCED = 1e6  # added to a token's logit so that it is drawn; its probability is reported as it was before
ALL = 10_000_000  # more tokens than any vocabulary has
SECONDS = 600


def missing() -> str | None:
    """Return what is not found of the two programs, None where both are there."""
    absent = [name for name in (CONVERTER, SERVER) if find(name) is None]
    if not absent:
        return None
    where = f"in {os.environ[FOLDER]} ({FOLDER})" if FOLDER in os.environ else f"on the path, and {FOLDER} is not set"
    return f"no {' and no '.join(absent)} {where}"


def find(name: str) -> str | None:
    """Return the path of a program of llama.cpp."""
    if FOLDER not in os.environ:
        return shutil.which(name)
    found = (Path(os.environ[FOLDER]) / inner / name for inner in INSIDE)
    return next((str(path) for path in found if path.is_file()), None)


def measure(folder: str, sequences: list[list[int]], new_tokens: int, work: Path, **_: Any) -> dict[str, Any]:
    """Return the log-likelihood of each token but the first, nats, and what follows each sequence greedily."""
    _check_tokenizer(Path(folder))
    file = work / "model.gguf"
    _run([sys.executable, find(CONVERTER), folder, "--outfile", str(file), "--outtype", "f32"])
    longest = max(map(len, sequences)) + new_tokens
    with _server(file, longest) as address:
        # a token whose text is whole, to be drawn where it does not matter which
        anchor = _post(f"{address}/tokenize", {"content": "a", "add_special": False})["tokens"][-1]
        likelihoods = [
            [_likelihood(address, tokens[:place], tokens[place], anchor) for place in range(1, len(tokens))]
            for tokens in sequences
        ]
        generated = []
        for tokens in sequences:
            longer = list(tokens)
            while len(longer) < len(tokens) + new_tokens:
                longer.append(_likeliest(address, longer, anchor))
            generated.append(longer[len(tokens) :])
    version = subprocess.run([find(SERVER), "--version"], capture_output=True, text=True, check=False)
    said = (version.stderr + version.stdout).split("version:")[-1].split()
    return {"likelihoods": likelihoods, "generated": generated, "version": " ".join(said[:2])}


def _check_tokenizer(folder: Path) -> None:
    """Raise ValueError for a kind of tokenizer that no GGUF file can hold, of which the converter says something
    else.
    """
    path = folder / "tokenizer.json"
    kind = json.loads(path.read_text(encoding="utf-8"))["model"].get("type", "BPE") if path.is_file() else "BPE"
    if kind not in KINDS:
        raise ValueError(f"a tokenizer of kind {kind} (tokenizer.json), llama.cpp has {', '.join(KINDS)} alone")


def _run(command: list[str]) -> None:
    # the script imports what lies beside it
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    options = {"capture_output": True, "text": True, "errors": "replace", "check": False}
    done = subprocess.run(command, env=environment, **options)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()
        print(*said, sep="\n", file=sys.stderr)
        raise RuntimeError(f"{Path(command[1]).name} ended with code {done.returncode}: {said[-1]}")


@contextmanager
def _server(file: Path, longest: int) -> Iterator[str]:
    """Run the server on a file within the block, keys and values in float32; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(max(longest, 64)), "--parallel", "1"]
    options += ["--n-gpu-layers", "0", "--cache-type-k", "f32", "--cache-type-v", "f32", "--no-warmup"]
    log = file.with_name("server.log")
    with log.open("w") as out:
        process = subprocess.Popen([find(SERVER), "--model", str(file), *options], stdout=out, stderr=out)
    try:
        _wait(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen, address: str, log: Path) -> None:
    """Return once the model is loaded; raises RuntimeError with what the server said when it ends before."""
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):  # not there yet, or still loading
            time.sleep(0.1)
    said = log.read_text(errors="replace")
    print(said, file=sys.stderr)
    failed = [line.strip() for line in said.splitlines() if "error" in line.lower()]
    raise RuntimeError(f"{SERVER} did not load the file: {'; '.join(failed) or 'no answer'}")


def _likelihood(address: str, before: list[int], token: int, anchor: int) -> float:
    """Return the log-likelihood of a token after others, nats.

    The server reports a token's when it is drawn, unless its text is no whole character: then it is in a list of all.
    """
    drawn = _asked(address, before, token, 1)
    if drawn is not None:
        return drawn["logprob"]
    every = _asked(address, before, anchor, ALL)["top_logprobs"]
    return next(one["logprob"] for one in every if one["id"] == token)


def _likeliest(address: str, before: list[int], anchor: int) -> int:
    """Return the likeliest token, whichever is drawn."""
    return _asked(address, before, anchor, 1)["top_logprobs"][0]["id"]


def _asked(address: str, before: list[int], token: int, reported: int) -> dict[str, Any] | None:
    """Return what the server reports when it draws a token, before its bias; None where it reports nothing."""
    question = {"prompt": before, "n_predict": 1, "n_probs": reported, "logit_bias": [[token, FORCED]]}
    found = _post(f"{address}/completion", {**question, "temperature": 0.0, "samplers": ["temperature"], "seed": 0})
    [drawn] = found.get("completion_probabilities") or [None]
    if drawn is not None and drawn["id"] != token:
        raise RuntimeError(f"{SERVER} drew token {drawn['id']}, forced was {token}")
    return drawn


def _post(address: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
