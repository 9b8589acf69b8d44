"""Seconds and disk of merges of one cut, as a workflow makes them one after the other: what no fit changes is shared.

python benchmarks/bench_merge.py --model FOLDER --cut 12 19 [--fits 4] [--folder /tmp]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from replaceme.core.cut_record import Cut
from replaceme.core.files import RESULTS_VARIABLE
from replaceme.models.checkpoints import open_checkpoint, resolve
from replaceme.surgery.fold import finish
from replaceme.surgery.linked_shards import twins_of
from replaceme.surgery.write_checkpoint import merging
from replaceme.transforms.transform import Transform


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="checkpoint that is shortened")
    parser.add_argument("--cut", type=int, nargs=2, required=True, metavar=("START", "END"), help="blocks to remove")
    parser.add_argument("--fits", type=int, default=4, help="models of this cut (default: 4)")
    parser.add_argument("--folder", type=Path, help="where they lie for the run (default: /tmp)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as results:
        os.environ[RESULTS_VARIABLE] = results
        print(json.dumps(measured(arguments, Path(results)), indent=1))


def measured(arguments: argparse.Namespace, results: Path) -> dict[str, object]:
    """Merge scaled identities, one a fit, and return the seconds of each, and the bytes on the disk with and without
    sharing.
    """
    record, checkpoint = resolve(arguments.model), open_checkpoint(arguments.model)
    start, end = arguments.cut
    cut = Cut([(start, end)], end - start, checkpoint.num_blocks, "given")
    seconds = []
    for number in range(arguments.fits):
        matrix = torch.eye(checkpoint.hidden_size, dtype=torch.float64) * (1 + number / 100)
        out = results / "cut" / f"fit-{number}" / "model"
        began = time.perf_counter()
        with merging(record.folder, out, record.files, twins=twins_of(out)) as merger:
            finish(merger, cut, [Transform(matrix, {"solver": "given"})], {})
        seconds.append(round(time.perf_counter() - began, 2))
    files = {path: path.stat() for path in results.rglob("*") if path.is_file()}
    once = {one.st_ino: one.st_size for one in files.values()}
    return {"seconds": seconds, "bytes": sum(one.st_size for one in files.values()), "on disk": sum(once.values())}


if __name__ == "__main__":
    main()
