"""Compare how fast a model is without what cuts remove: a prompt, the tokens after it, and both together.

A machine is slow for a while now and then, a host of GPUs too. So each round takes the time of the whole model and of
every cut once, in turn, and the least of all rounds counts; beside it stands by how much their median is longer. Parts
are left out of the loaded model, whose weights are read once; saved, a cut has the same shapes. The files are cut.json
of the `cut` step, or in a workflow's results; cuts of the same parts are measured once.

    python benchmarks/compare_speeds.py --model FOLDER [--rounds 10 --dtype bfloat16] results/qwen/mixed/*/cut.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from replaceme.config.command_line import add_options, from_options
from replaceme.config.evaluations import KERNELS, SpeedConfig
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import write_json
from replaceme.core.places import Span, shown
from replaceme.core.progress import progress
from replaceme.evaluation.absent import without_cut
from replaceme.evaluation.speed import Workload, one_repeat, random_prompt, workload
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.family import Family
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import family_of, pick_device, pick_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.provenance.environment import hardware
from replaceme.steps.common import same_model

Times = list[tuple[float, float]]  # of each round: seconds of the prompt and of the tokens after it
OPTIONS = ("prompt_tokens", "new_tokens", "batch_size", "warmup", "clock")


def main() -> None:
    """Measure, print a table, and write it with the machine to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cuts", nargs="+", type=Path, help="cut.json, once for each")
    parser.add_argument("--model", required=True, help="folder of the whole model")
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    parser.add_argument("--dtype", default="auto", help="default: the checkpoint's on a GPU, float32 on a CPU")
    parser.add_argument("--out", type=Path, help="where all times go (.json)")
    add_options(parser, SpeedConfig, OPTIONS)
    arguments = parser.parse_args()
    try:
        measure(arguments)
    except ReplaceMeError as error:
        parser.exit(1, f"{error}\n")


def measure(arguments: argparse.Namespace) -> None:
    """Measure, print and write what is asked for."""
    if arguments.rounds < 1:
        raise ReplaceMeError(f"--rounds {arguments.rounds}: must be at least 1")
    options, config = from_options(arguments, SpeedConfig, OPTIONS), read_config(arguments.model)
    device = pick_device("auto")
    dtype = pick_dtype(arguments.dtype, device, config)
    names = named(arguments.cuts, resolve(arguments.model))
    model = load_causal_model(arguments.model, dtype, device)
    prompt = random_prompt(model, arguments.model, options, options.new_tokens)
    load = workload(model, prompt, options.new_tokens, options.clock)
    times = in_rounds(model, family_of(config, arguments.model), load, list(names), options.warmup, arguments.rounds)
    tokens = (options.batch_size * options.prompt_tokens, options.batch_size * options.new_tokens)
    lengths = f"{options.batch_size} x {options.prompt_tokens} tokens and {options.new_tokens} new ones"
    by = ", by the time of the GPU's kernels alone" if options.clock == KERNELS else ""
    print(f"{lengths}, {dtype} on {device}{by}\n")
    print("\n".join(table(names, times, tokens)))
    if arguments.out:
        about = {"dtype": dtype, "threads": torch.get_num_threads(), **options.model_dump(include=set(OPTIONS))}
        rounds = [{"cuts": names[key], "groups": key, "seconds": found} for key, found in times.items()]
        write_json(arguments.out, {**about, "hardware": hardware(), "rounds": rounds})


def named(paths: Sequence[Path], record: ModelRecord) -> dict[tuple[Span, ...], str]:
    """Return the names of the cuts with the same groups, which are those of their folders; nothing is cut first.

    Raises ReplaceMeError for a cut of another model.
    """
    names: dict[tuple[Span, ...], list[str]] = {(): ["whole"]}
    for path in paths:
        cut = Cut.load(path)
        same_model(record, cut.model_sha256, path)
        names.setdefault(tuple(cut.groups), []).append(path.parent.name)
    return {groups: ", ".join(found) for groups, found in names.items()}


def in_rounds(
    model: torch.nn.Module, family: Family, load: Workload, cuts: Sequence[tuple[Span, ...]], warmup: int, rounds: int
) -> dict[tuple[Span, ...], Times]:
    """Return the times of every cut in every round, after `warmup` rounds that do not count."""
    times: dict[tuple[Span, ...], Times] = {groups: [] for groups in cuts}
    for _ in progress(range(warmup + rounds), "speeds", unit="round"):
        for groups, found in times.items():
            with without_cut(model, family, groups), torch.inference_mode():
                found.append(one_repeat(model, load))
    return {groups: found[warmup:] for groups, found in times.items()}


def table(
    names: dict[tuple[Span, ...], str], times: dict[tuple[Span, ...], Times], tokens: tuple[int, int]
) -> list[str]:
    """Return the lines of a table in Markdown; latencies are also shown as shares of the whole model's."""
    whole = min(map(sum, times[()]))
    lines = ["| cut | removed | prefill tok/s | decode tok/s | latency ms | of the whole | median longer |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for groups, found in times.items():
        least = [min(column) for column in zip(*found, strict=True)]
        rates = [number / seconds for number, seconds in zip(tokens, least, strict=True)]
        latencies = list(map(sum, found))
        latency, longer = min(latencies), median(latencies) / min(latencies) - 1
        cells = (names[groups], shown(groups), f"{rates[0]:.0f}", f"{rates[1]:.2f}", f"{1e3 * latency:.0f}")
        lines.append(f"| {' | '.join(cells)} | {latency / whole:.3f} | {longer:.1%} |")
    return lines


if __name__ == "__main__":
    main()
