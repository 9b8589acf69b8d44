"""Set the environment of a workflow's jobs, at the beginning of their shell commands.

Their commands themselves stay free of it: Snakemake runs a job again whose command changed, and neither where Python is
installed nor that costs are measured is a reason for that.
"""

import shlex
from pathlib import Path

from replaceme.config.cost import CostConfig
from replaceme.config.result_paths import RESULTS
from replaceme.core.files import RESULTS_VARIABLE
from replaceme.provenance.job_cost import VARIABLE as COST_VARIABLE
from replaceme.provenance.job_cost import setting
from replaceme.workflow.planned import VARIABLE as PLAN_VARIABLE
from replaceme.workflow.step_client import VARIABLE as SERVER_VARIABLE


def shell_prefix(
    python: str | Path, cost: CostConfig | None, server: str | None = None, plan: str | None = None
) -> str:
    """Return the prefix of all shell commands, in the form that Snakemake formats (braces doubled).

    Jobs find `python` and `replaceme` beside the given interpreter even where its environment was not activated, but in
    a container, which has its own; they know where results lie, to record what they were made from, and what of the
    run is measured; and where the step server listens, if there is one.
    """
    variables = {RESULTS_VARIABLE: RESULTS}
    if cost is not None:
        variables[COST_VARIABLE] = setting(RESULTS, **cost.model_dump())
    if server is not None:
        variables[SERVER_VARIABLE] = server
    if plan is not None:
        variables[PLAN_VARIABLE] = plan
    exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    path = f'PATH={shlex.quote(str(Path(python).parent))}:"$PATH"'
    outside = '[ -n "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ]'
    text = f"set -euo pipefail; export {exported}; {outside} || {path}; "
    return text.replace("{", "{{").replace("}", "}}")
