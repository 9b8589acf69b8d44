"""Adam over batches of stored rows, as in the paper (arXiv 2505.02819, Table 14), and the only Adam of this package.

The authors' choices: the defaults of AdamOptions, T from the identity, no bias, float32, torch's other defaults; random
token masking (A.12) and the penalties of eq. 9.
Ours: the order of an epoch follows from seed and epoch alone, so that a run can go on where it was interrupted; the
last, smaller batch is used; the L1 penalty is followed by its subgradient, which makes entries small, not zero.
"""

from collections.abc import Callable
from typing import Any

import torch

from replaceme.config.solvers import AdamOptions
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.transforms.given_rows import GivenRows
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State, Tensors
from replaceme.transforms.streams import Table
from replaceme.transforms.training import memory, restore
from replaceme.transforms.transform import Transform


def fit_adam(given: GivenRows, objective: Objective, **options: Any) -> Transform:
    """Return T float64 [in, out] that minimises an objective over the rows from T = I, by Adam with AdamOptions.

    T is left as it is, also where the objective does not see its length, as the authors leave it. The report: see
    `GivenRows.finished`; `history` is the loss of each epoch, without penalties. An interrupted fit goes on from its
    state. Raises ReplaceMeError for rows without the state that the objective needs, or all zero.
    """
    blocks = given.blocks(objective)
    table = Table(given.rows, given.device, objective.state)
    matrix, history = adam(table, objective, AdamOptions(**options), given.state)
    return given.finished(objective, matrix.double().cpu(), "adam", history, blocks)


def adam(
    table: Table, objective: Objective, options: AdamOptions, state: State | None = None
) -> tuple[torch.Tensor, list[float]]:
    """Minimise by Adam; returns (T float32 [in, out], mean loss of each epoch's batches without penalties), on the
    table's device.

    The state is saved between batches. Raises ReplaceMeError for a loss that is not
    finite, and where no row has a direction.
    """
    state = state or State()
    matrix = torch.eye(*table.columns, device=table.device, requires_grad=True)
    optimiser = torch.optim.Adam([matrix], lr=options.learning_rate)
    sums = torch.zeros(2, dtype=torch.float64, device=table.device)  # losses and rows of this epoch so far
    tensors, record = state.read(table.device) or ({}, {"history": [], "batch": 0})
    if tensors:
        restore(optimiser, {"matrix": matrix}, tensors)
        sums = tensors["sums"]
    history, first = record["history"], record["batch"]

    def saved(batch: int) -> Callable[[], tuple[Tensors, dict[str, Any]]]:
        return lambda: ({**memory(optimiser, {"matrix": matrix}), "sums": sums}, {"history": history, "batch": batch})

    for epoch in range(len(history), options.epochs):
        batches = _order(table.count, options, epoch).split(options.batch_tokens)
        for number in progress(
            range(first, len(batches)), f"adam, epoch {epoch + 1} of {options.epochs}", unit="batch"
        ):
            optimiser.zero_grad()
            loss, count = objective.total(matrix, table.take(batches[number]))
            (loss / count.clamp(min=1) + objective.penalty(matrix)).backward()
            optimiser.step()
            sums += torch.stack([loss.detach().double(), count.double()])
            state.write(saved(number + 1))
        history.append(_mean(sums, epoch))
        sums.zero_()
        first = 0
        state.write(saved(first))
    return matrix.detach(), history


def _order(count: int, options: AdamOptions, epoch: int) -> torch.Tensor:
    """Return the rows of an epoch in its order, without the masked ones; at least one."""
    generator = torch.Generator().manual_seed((options.order_seed << 20) + epoch)
    kept = max(1, count - round(options.mask_ratio * count))
    return torch.randperm(count, generator=generator)[:kept]


def _mean(sums: torch.Tensor, epoch: int) -> float:
    loss, rows = sums.tolist()
    if not rows:
        raise ReplaceMeError("no row has a direction: nothing to fit")
    if not abs(loss) < float("inf"):
        raise ReplaceMeError(f"adam: the loss of epoch {epoch + 1} is {loss}; lower `learning_rate`")
    return loss / rows
