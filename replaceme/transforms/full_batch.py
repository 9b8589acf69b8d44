"""Solvers that see all rows at each step: L-BFGS, nonlinear conjugate gradients, trust-region Newton-CG (A.6).

The authors name the solvers, compare what they reach (Table 8) and start them at the identity; the rest is ours:
everything in float64 (line searches compare losses that differ by little), rows streamed block by block, no Hessian
formed, and preconditioned: T = P X with `P^-T P^-1 = mean(m m^T / |l|^2) + 2 alpha I`, the Gram of the rows (whose
condition number is 1e6 and more) weighted as the objective weighs them, and the curvature of the L2 penalty; that of
the whole is then near 1 in all directions.
L-BFGS is torch's with a strong-Wolfe search. The other two are those of pytorch-minimize, whose memory cannot be read
from outside: they run in rounds of a fixed number of iterations, and an interrupted fit goes on from the last round.
"""

from collections.abc import Callable
from typing import Any

import torch

from replaceme.core.progress import progress
from replaceme.kernels.gram import gram
from replaceme.transforms.given_rows import GivenRows, scaled
from replaceme.transforms.objectives import SMALLEST_SQUARE, Objective
from replaceme.transforms.resume import State, Tensors
from replaceme.transforms.streams import Block, Blocks
from replaceme.transforms.transform import Transform

ITERATIONS = 100
Found = tuple[torch.Tensor, list[float]]
Solve = Callable[["Problem", int, State], Found]
TOLERANCE = 1e-7  # of the loss, by which it has to fall in an iteration, or in a round
HISTORY = 10  # steps that L-BFGS remembers
SEARCH = 25  # most evaluations of a line search; without it torch would allow none at one iteration a call
ROUND = {"cg": 20, "trust-ncg": 5}  # iterations
SMALLEST_GRADIENT = 1e-6  # where the curvature is near 1: the loss is then within 1e-12 of its minimum
JITTER = 1e-6  # of the unit diagonal of the Gram that preconditions
NUMBERS = (int, float)


def fit_lbfgs(given: GivenRows, objective: Objective, iterations: int | None = None) -> Transform:
    """Return T float64 [in, out] that minimises an objective over the rows from T = I, by L-BFGS.

    At most `iterations` (100). Where the objective does not see the length of T, it is set as least squares would set
    it. The report: see `GivenRows.finished`; `history` is the loss by iteration (here) or round, penalties included. An
    interrupted fit goes on from its state. Raises ReplaceMeError for rows without the state that the objective needs,
    or all zero.
    """
    return _fitted(given, objective, iterations, "lbfgs", lbfgs)


def fit_nlcg(given: GivenRows, objective: Objective, iterations: int | None = None) -> Transform:
    """As `fit_lbfgs`, by nonlinear conjugate gradients."""
    return _fitted(given, objective, iterations, "nlcg", nlcg)


def fit_trust_ncg(given: GivenRows, objective: Objective, iterations: int | None = None) -> Transform:
    """As `fit_lbfgs`, by Newton's method in a trust region."""
    return _fitted(given, objective, iterations, "trust_ncg", trust_ncg)


def _fitted(given: GivenRows, objective: Objective, iterations: int | None, name: str, solve: Solve) -> Transform:
    blocks = given.blocks(objective)
    problem = Problem(objective, blocks, given.rows.columns, given.device)
    matrix, history = solve(problem, iterations or ITERATIONS, given.state)
    matrix = matrix.double().cpu()
    if objective.scale_free:
        matrix = scaled(given.statistics, matrix)
    return given.finished(objective, matrix, name, history, blocks)


class Problem:
    """The objective over all rows in the coordinates X, as one function of a flat float64 vector of in * out."""

    def __init__(self, objective: Objective, blocks: Blocks, columns: tuple[int, int], device: str | torch.device):
        """Take one pass over the rows for the preconditioner."""
        self.objective, self.blocks, self.columns = objective, blocks, columns
        self.forward, self.inverse = _preconditioner(objective, blocks, columns[0], device)

    def matrix(self, x: torch.Tensor) -> torch.Tensor:
        """Return T [in, out] of a point."""
        return self.forward @ x.view(self.columns)

    def start(self) -> torch.Tensor:
        """Return the point that stands for T = I."""
        identity = torch.eye(*self.columns, dtype=torch.float64, device=self.inverse.device)
        return (self.inverse @ identity).flatten()

    def evaluate(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the value [] and gradient at a point."""
        value, gradient = self.objective.value_and_gradient(self.blocks, self.matrix(x))
        return value, (self.forward.T @ gradient).flatten()

    def curvature(self, x: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        """Return the Hessian at a point times a direction."""
        found = self.objective.curvature(self.blocks, self.matrix(x), self.matrix(along))
        return (self.forward.T @ found).flatten()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the value, twice differentiable by autograd."""
        return _Value.apply(x, self)


class _Value(torch.autograd.Function):
    """A problem's value; its backward is `_Gradient`, so that autograd sees one node and no row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, problem: Problem) -> torch.Tensor:
        value, gradient = problem.evaluate(x)
        ctx.save_for_backward(x, gradient)
        ctx.problem = problem
        return value

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor):
        return outer * _Gradient.apply(*ctx.saved_tensors, ctx.problem), None


class _Gradient(torch.autograd.Function):
    """The gradient that came with the value; its backward is a Hessian-vector product."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gradient: torch.Tensor, problem: Problem) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.problem = problem
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, along: torch.Tensor):
        return ctx.problem.curvature(ctx.saved_tensors[0], along), None, None


def lbfgs(problem: Problem, iterations: int, state: State) -> Found:
    """Return (T, loss before each iteration and after the last) by torch's L-BFGS with a strong-Wolfe line search."""
    point = problem.start().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point], max_iter=1, max_eval=1 + SEARCH, history_size=HISTORY, tolerance_grad=0.0, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    saved = state.read(point.device)
    if saved:
        with torch.no_grad():
            point.copy_(saved[0].pop("point"))
        optimiser.state[point] = _unflattened(*saved)
    history = saved[1]["history"] if saved else []
    known: list[torch.Tensor] = []  # the last point, its value and gradient: the search ends where the next step begins

    def closure() -> torch.Tensor:
        if not (known and torch.equal(known[0], point)):
            known[:] = [point.detach().clone(), *problem.evaluate(point.detach())]
        point.grad = known[2].clone()
        return known[1]

    for _ in progress(range(len(history), iterations), "lbfgs", unit="iteration"):
        if _settled(history):
            break
        history.append(float(optimiser.step(closure)))
        state.write(lambda: _flattened(optimiser.state[point], point, history))
    return problem.matrix(point.detach()), [*history, float(closure())]


def nlcg(problem: Problem, iterations: int, state: State) -> Found:
    """Return (T, loss before each round and after the last) by Polak-Ribiere conjugate gradients of
    pytorch-minimize.
    """
    return _in_rounds(problem, "cg", iterations, state)


def trust_ncg(problem: Problem, iterations: int, state: State) -> Found:
    """Return (T, loss before each round and after the last) by Newton's method in a trust region, of pytorch-minimize.

    Each step is solved by conjugate gradients on Hessian-vector products, a pass over the rows each.
    """
    return _in_rounds(problem, "trust-ncg", iterations, state)


def _in_rounds(problem: Problem, method: str, iterations: int, state: State) -> Found:
    """Run rounds of a method of pytorch-minimize, each from where the last one ended."""
    from torchmin import minimize

    saved = state.read(problem.inverse.device)
    point = saved[0]["point"] if saved else problem.start()
    radius, history = (saved[1]["radius"], saved[1]["history"]) if saved else (1.0, [])
    first = max(0, len(history) - 1) * ROUND[method]
    for done in progress(range(first, iterations, ROUND[method]), method, unit="round"):
        if _settled(history):
            break
        if not history:
            history.append(float(problem.evaluate(point)[0]))
        steps = _Steps(point)
        trust = {"initial_trust_radius": radius} if method == "trust-ncg" else {}
        result = minimize(
            problem, point, method, max_iter=min(ROUND[method], iterations - done), callback=steps,
            options={"gtol": SMALLEST_GRADIENT, **trust},
        )  # fmt: skip
        point, radius = result.x, min(max(2 * steps.last, 1e-3), 500.0)
        history.append(float(result.fun))
        record = {"radius": radius, "history": history}
        state.write(lambda point=point, record=record: ({"point": point}, record))
    return problem.matrix(point), history


class _Steps:
    """Callback that measures a method's last step, from which the trust region of the next round starts."""

    def __init__(self, point: torch.Tensor) -> None:
        self._point, self.last = point, 0.0

    def __call__(self, point: torch.Tensor) -> None:
        step = float((point.flatten() - self._point.flatten()).norm())
        self.last, self._point = step or self.last / 4, point


def _settled(history: list[float]) -> bool:
    return len(history) > 1 and history[-2] - history[-1] <= TOLERANCE * abs(history[-1])


def _flattened(memory: dict[str, Any], point: torch.Tensor, history: list[float]) -> tuple[Tensors, dict[str, Any]]:
    """Return the memory of L-BFGS as tensors by name and numbers; `al` is scratch."""
    tensors = {"point": point.detach()}
    memory = {name: value for name, value in memory.items() if name != "al"}
    for name, value in memory.items():
        given = {f"{name}.{k}": one for k, one in enumerate(value)} if isinstance(value, list) else {name: value}
        tensors |= {key: one for key, one in given.items() if isinstance(one, torch.Tensor)}
    numbers = {name: value for name, value in memory.items() if isinstance(value, NUMBERS)}
    return tensors, {"history": history, "numbers": numbers}


def _unflattened(tensors: Tensors, record: dict[str, Any]) -> dict[str, Any]:
    """Return the memory that `_flattened` saved; lists in their order."""
    lists: dict[str, dict[int, torch.Tensor]] = {"old_dirs": {}, "old_stps": {}, "ro": {}}
    memory: dict[str, Any] = dict(record["numbers"])
    for name, value in tensors.items():
        key, dot, number = name.partition(".")
        if dot:
            lists.setdefault(key, {})[int(number)] = value
        else:
            memory[name] = value
    return memory | {name: [values[k] for k in sorted(values)] for name, values in lists.items()}


def _preconditioner(
    objective: Objective, blocks: Blocks, width: int, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return P = S^-1 L^-T and its inverse, float64 [in, in]; `S^-1 G S^-1 = L L^T` is the weighted Gram of unit
    diagonal.

    A channel that is always zero keeps its scale.
    """
    total, rows = torch.zeros(width, width, dtype=torch.float64, device=device), 0
    for block in blocks():
        gram(block.m, _weights(objective, block), out=total)
        rows += len(block.m)
    total /= max(rows, 1)
    total.diagonal().add_(2 * objective.l2)  # the curvature of the penalty
    diagonal = total.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    total /= scale[:, None] * scale
    total.diagonal().clamp_(min=1.0).add_(JITTER)
    factor, failed = torch.linalg.cholesky_ex(total)
    if failed:
        factor = torch.eye(width, dtype=torch.float64, device=device)
    identity = torch.eye(width, dtype=torch.float64, device=device)
    forward = torch.linalg.solve_triangular(factor.T, identity, upper=True) / scale[:, None]
    return forward, factor.T * scale


def _weights(objective: Objective, block: Block) -> torch.Tensor | None:
    """Return 1 / |l|^2 of each row, the curvature of its cosine distance; equal weights for l2."""
    if objective.name == "l2":
        return None
    target = block.r.double() if block.y is None else block.r.double() + block.y.double()
    squares = target.square().sum(1)
    return torch.where(squares > SMALLEST_SQUARE, 1 / squares.clamp(min=SMALLEST_SQUARE), 0.0)
