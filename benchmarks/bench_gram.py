"""Speed and error of the kernels on this GPU: a table, and benchmarks/results/<gpu>-<kernel>.json.

Every case is checked against float64 first. Times are device times: each side is captured once per input set as a
CUDA graph (the Python around it does not count), and the sides take turns of some replays back to back, rotating over
the input sets, so that neither finds its input in the L2 and both see the same, warm, clocks; medians. Baselines are
what one would write with torch alone.

    python benchmarks/bench_gram.py [--kernel gram_cross] [--repeats 15] [--out benchmarks/results]
"""

import argparse
import json
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import triton

from replaceme.kernels.gram import Sums, gram, gram_cross, gram_cross_reference, gram_reference
from replaceme.kernels.pairwise_cosine import pairwise_cosine, pairwise_cosine_reference
from replaceme.kernels.row_cosine import row_cosine, row_cosine_reference

LONG, SHORT = 65536, 8192
WIDTHS = (640, 896, 2048, 3584, 4096, 8192)
TURN_MS = 20  # of one side before the other has its turn
PEAK_TFLOPS, PEAK_BYTES = 989.0, 4.8e12  # H200: dense bfloat16, HBM3e; datasheet


@dataclass
class Record:
    """One measured case; ms, baseline_ms: medians; tflops: of the required products; bytes: read and written once."""

    kernel: str
    d: int
    rows: int
    dtype: str
    variant: str
    ms: float
    baseline: str
    baseline_ms: float
    ratio: float
    tflops: float
    tflops_of_peak: float
    bytes_of_peak: float
    rel_error: float


@dataclass
class Case:
    """A kernel at one size; run and baseline take the number of an input set."""

    kernel: str
    d: int
    rows: int
    dtype: torch.dtype
    run: Callable
    baseline: str
    run_baseline: Callable
    error: Callable
    flops: float
    bytes: float
    variant: str = ""
    sets: int = 2


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return standard normal rows on the GPU."""
    return torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)).to(dtype)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative Frobenius error."""
    return float((found.double() - expected).norm() / expected.norm())


def single(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute `a^T b` with float32 output, by cuBLAS."""
    return torch.mm(a.T, b) if a.dtype == torch.float32 else torch.mm(a.T, b, out_dtype=torch.float32)


def gram_case(d: int, count: int, dtype: torch.dtype, master: bool = False) -> Case:
    sets = 2 if count * d > 2**27 else 6
    x = [rows(seed, count, d, dtype=dtype) for seed in range(sets)]
    out = torch.zeros(d, d, dtype=torch.float64, device="cuda") if master else None
    return Case(
        "gram",
        d,
        count,
        dtype,
        lambda n: gram(x[n], out=out),
        "cuBLAS X^T X, float32 output",
        lambda n: single(x[n], x[n]),
        lambda: relative(gram(x[0]), gram_reference(x[0])),
        count * d * (d + 1),
        count * d * dtype.itemsize + (1 + master) * 8 * d * d,
        "added into a float64 matrix" if master else "",
        sets=sets,
    )


def gram_cross_case(d: int, count: int, baseline: str, rounded: bool, master: bool = False) -> Case:
    x, a, b = ([rows(10 * n + seed, count, d) for seed in range(2)] for n in range(3))
    out = Sums.zeros(d, d, "cuda") if master else None

    def by_cublas(n: int):
        return single(x[n], x[n]), single(x[n], a[n] - b[n] + x[n])

    def by_float64(n: int):
        wide = x[n].double()
        return wide.T @ wide, wide.T @ (a[n].double() - b[n].double() + wide)

    def error() -> float:
        found = gram_cross(x[0], (a[0], b[0], x[0]), rounded=rounded)
        expected = gram_cross_reference(x[0], (a[0], b[0], x[0]), rounded=rounded)
        return max(relative(found.gram, expected.gram), relative(found.cross, expected.cross))

    return Case(
        "gram_cross",
        d,
        count,
        torch.bfloat16,
        lambda n: gram_cross(x[n], (a[n], b[n], x[n]), out=out, rounded=rounded),
        baseline,
        by_float64 if "float64" in baseline else by_cublas,
        error,
        count * d * (3 * d + 1),
        count * d * 2 * 3 + (1 + master) * 8 * 2 * d * d,
        ("r rounded to bfloat16" if rounded else "r exact") + ", added into float64 matrices" * master,
    )


def row_cosine_case(d: int, count: int, terms: int) -> Case:
    x, a, b = ([rows(10 * n + seed, count, d) for seed in range(2)] for n in range(3))
    t = rows(7, d, d) / d**0.5

    def error() -> float:
        few = slice(0, 4096)
        given = (x[0][few], t, tuple(r[0][few] for r in (a, b, x)[:terms]))
        found, expected = row_cosine(*given), row_cosine_reference(*given)
        return float(((found.dot - expected.dot).abs() / (expected.norm_p * expected.norm_r)).max())

    return Case(
        "row_cosine",
        d,
        count,
        torch.bfloat16,
        lambda n: row_cosine(x[n], t, (a[n], b[n], x[n])[:terms]),
        "cuBLAS x @ t, bfloat16 output",
        lambda n: x[n] @ t,
        error,
        2 * count * d * d,
        count * d * 2 * (1 + terms) + 2 * d * d,
        f"{terms} term{'s' * (terms > 1)}",
    )


def pairwise_cosine_case(blocks: int, d: int, count: int) -> Case:
    hidden = [rows(seed, count, d) + rows(99, count, d) for seed in range(blocks)]
    source = torch.empty(blocks * count * d // 2, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)

    def error() -> float:
        few = [state[:512] for state in hidden]
        both = zip(pairwise_cosine(few), pairwise_cosine_reference(few), strict=True)
        return max(float((found - expected).abs().max()) for found, expected in both)

    return Case(
        "pairwise_cosine",
        d,
        count,
        torch.bfloat16,
        lambda n: pairwise_cosine(hidden),
        "an elementwise kernel that moves as many bytes",
        lambda n: torch.neg(source, out=target),  # a copy would not run as a kernel in a graph
        error,
        2 * count * d * blocks * blocks,
        blocks * count * d * 2,
        f"{blocks} blocks",
        sets=1,
    )


def cases() -> dict[str, list[Callable[[], Case]]]:
    """Return the cases of each kernel, made one at a time."""
    bf16, cublas, float64 = torch.bfloat16, "cuBLAS X^T X, R = A - B + C, X^T R", "float64: cast, X^T X, X^T R"
    return {
        "gram": [
            partial(gram_case, 4096, LONG, bf16),
            partial(gram_case, 4096, LONG, bf16, master=True),
            *(partial(gram_case, d, SHORT, bf16) for d in WIDTHS),
            partial(gram_case, 4095, SHORT, bf16),
            partial(gram_case, 4096, SHORT, torch.float16),
            partial(gram_case, 4096, SHORT, torch.float32),
        ],
        "gram_cross": [
            partial(gram_cross_case, 4096, LONG, cublas, True),
            partial(gram_cross_case, 4096, LONG, cublas, True, master=True),
            partial(gram_cross_case, 4096, LONG, cublas, False),
            partial(gram_cross_case, 4096, SHORT, float64, True),
            partial(gram_cross_case, 4096, SHORT, float64, False),
        ],
        "row_cosine": [partial(row_cosine_case, 4096, LONG, terms) for terms in (1, 3)],
        "pairwise_cosine": [partial(pairwise_cosine_case, 33, 4096, SHORT)],
    }


def prepared(run: Callable, case: Case) -> list[Callable]:
    """Return one callable per input set, a CUDA graph, after a warm-up that compiles and fills the caches."""
    calls = []
    for n in range(case.sets):
        run(n)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(n)
        calls.append(graph.replay)
    return calls


def timed(calls: list[Callable], times: int) -> float:
    """Return the milliseconds of one call, from `times` calls back to back over the input sets."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for turn in range(times):
        calls[turn % len(calls)]()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times


def measure(case: Case, repeats: int) -> Record:
    """Check a case, then time both sides in turns."""
    error = case.error()
    sides = [prepared(run, case) for run in (case.run, case.run_baseline)]
    together = [max(2, round(TURN_MS / timed(calls, 2))) for calls in sides]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 3):
        for side, calls in enumerate(sides):
            spent = timed(calls, together[side])
            if turn >= 3:
                times[side].append(spent)
    ms, baseline_ms = (statistics.median(side) for side in times)
    tflops = case.flops / ms / 1e9
    return Record(
        case.kernel,
        case.d,
        case.rows,
        str(case.dtype).removeprefix("torch."),
        case.variant,
        ms,
        case.baseline,
        baseline_ms,
        baseline_ms / ms,
        tflops,
        tflops / PEAK_TFLOPS,
        case.bytes / ms * 1e3 / PEAK_BYTES,
        error,
    )


def hardware() -> dict[str, str]:
    """Describe the machine and versions of the figures."""
    name = torch.cuda.get_device_name()
    query = "--query-gpu=driver_version,power.limit,clocks.max.sm"
    smi = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    driver, power, clock = (field.strip() for field in (smi.stdout.splitlines() or ["?,?,?"])[0].split(","))
    return {
        "hardware": name,
        "driver": driver,
        "power_limit": power,
        "max_sm_clock": clock,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=[*cases(), "all"], default="all", help="measure one kernel alone")
    parser.add_argument("--repeats", type=int, default=15, help="timed turns of each side (default: 15)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON files")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "bench_gram.py: no CUDA device; these kernels run on the CPU through torch alone\n")
    machine = hardware()
    print(*(f"{key}: {value}" for key, value in machine.items()), sep=", ")
    print(f"{'kernel':16}{'d':>6}{'rows':>7} {'dtype':9}{'ms':>8}{'base ms':>9}{'ratio':>7}{'TFLOP/s':>9}{'error':>9}")
    for kernel, makers in cases().items():
        if arguments.kernel not in ("all", kernel):
            continue
        records = []
        for make in makers:
            record = measure(make(), arguments.repeats)
            torch.cuda.empty_cache()
            records.append(record)
            print(
                f"{record.kernel:16}{record.d:6}{record.rows:7} {record.dtype:9}{record.ms:8.3f}"
                f"{record.baseline_ms:9.3f}{record.ratio:7.2f}{record.tflops:9.0f}{record.rel_error:9.1e}"
                f"  {record.variant}{', ' * bool(record.variant)}against {record.baseline}",
                flush=True,
            )
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = machine["hardware"].lower().replace(" ", "-")
        text = json.dumps({**machine, "records": [asdict(record) for record in records]}, indent=2)
        (arguments.out / f"{name}-{kernel}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
