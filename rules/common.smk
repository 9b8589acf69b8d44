"""The validated config, and what the rules ask of it (replaceme/workflow): inputs, options, resources, code."""

import re
import sys
from functools import partial

from replaceme.config import result_paths as paths
from replaceme.config.exports import PROGRAMS
from replaceme.config.result_paths import at, benchmark_of, checkpoint_files, log_of
from replaceme.config.units import TIMED, UNITS
from replaceme.core.errors import ReplaceMeError
from replaceme.workflow import code
from replaceme.workflow.code import code_of
from replaceme.workflow.devices import Devices
from replaceme.workflow.figure_jobs import FigureJobs
from replaceme.workflow.fit_jobs import FitJobs, evidence_options
from replaceme.workflow.job_environment import shell_prefix
from replaceme.workflow.list_readers import removed_models, write_readers
from replaceme.workflow.load_config import check_config, load_config
from replaceme.workflow.measure_jobs import MeasureJobs
from replaceme.workflow.model_jobs import ModelJobs
from replaceme.workflow.planned import remove_plan, write_plan
from replaceme.workflow.removal import Removal
from replaceme.workflow.requests import Requests
from replaceme.workflow.rows_first import RowsFirst
from replaceme.workflow.snakemake_lock import begin, told_when_locked
from replaceme.workflow.step_server import StepServer
from replaceme.workflow.table_jobs import FORMATS, TableJobs
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# priorities, above the 0 of what makes models: what needs the machine alone and nothing but a model comes before other
# jobs fill it, however many there are (one scheduler adds their priorities up); sums of all cuts are gathered by one
# pass, if all cuts are known before it; sums come before measurements, as most that is left waits for them, and so may
# rows (`rows_first`); a model is checked and measured before the next is made, so that few lie unmeasured
FIRST, CHOOSES, GATHERS, CHECKS, MEASURES = 10_000, 4, 3, 2, 1

LOCAL = workflow.is_main_process and workflow.resource_settings.nodes is None
CLUSTER = workflow.is_main_process and not LOCAL

try:
    CONFIG, ORIGIN = load_config(workflow.configfiles, workflow.config_settings.config)
    granted = (workflow.global_resources.get("gpu").value or 0) if CLUSTER else None
    DEVICES = Devices(CONFIG, granted)
    if workflow.is_main_process:
        for line in check_config(CONFIG, ORIGIN):
            logger.warning(line)
        for line in removed_models(CONFIG):
            logger.info(line)
    if LOCAL and "gpu" not in workflow.global_resources:
        # without this limit `gpu: 1` would limit nothing; clusters count their own devices
        DEVICES.check()
        workflow.register_resource("gpu", DEVICES.count)
except ReplaceMeError as error:
    raise WorkflowError(str(error)) from None

STEP_SERVER, REMOVAL = StepServer(), Removal()
shell.prefix(shell_prefix(sys.executable, CONFIG.cost))
logger.addFilter(told_when_locked)  # of two runs in one folder, or after a kill

models = ModelJobs(CONFIG, DEVICES.gpu)
fits = FitJobs(CONFIG)
measures = MeasureJobs(CONFIG)
tables = TableJobs(CONFIG, fits)
figures = FigureJobs(CONFIG, tables)
config["front"] = figures.front()  # for captions/workflow.rst
REQUESTS = Requests(
    fits,
    "cuda" if DEVICES.gpu else "cpu",
    warn=logger.warning if CLUSTER else logger.debug,
)
takes = REQUESTS.of
rows_first = RowsFirst(REQUESTS, urgent=GATHERS)


def any_of(names):
    """Return a wildcard constraint that admits exactly some names; where there are none, nothing rather than all."""
    return "|".join(re.escape(name) for name in names) or r"(?!)"


def all_cores():
    """Return the cores given to the workflow, so that a job runs alone; 1 where none are (reports, linting, clusters).

    A job on a node sees that node's cores, of which it was granted as many as were asked for where it was submitted.
    """
    try:
        return 1 if workflow.remote_exec else workflow.cores
    except WorkflowError:
        return 1


def some_cores():
    """Return the cores of a job that uses several of them: to make text into tokens beside a GPU, or to compute."""
    return DEVICES.share(all_cores())


def model_of(wildcards, input):
    """Return the model that a job reads: a folder, or of a baseline its model.json."""
    return paths.model_at(input.model)


def made_model(wildcards, output):
    """Return the folder of the checkpoint that a job writes."""
    return paths.model_at(output.record)


def stem(wildcards, output):
    """Return the path of a table without the endings of its formats."""
    return output.md.removesuffix(".md")


def shown(path, caption, category, subcategory=None, **labels):
    """Return an output that the report shows."""
    return report(
        path,
        caption=f"captions/{caption}.rst",
        category=category,
        subcategory=subcategory,
        labels=labels,
    )


def formats(path, caption, category="1. Tables", subcategory=None, **labels):
    """Return the outputs of a table, of which the report shows .csv and .html."""
    return {
        ending: (
            shown(
                f"{path}.{ending}",
                caption,
                category,
                subcategory,
                **labels,
                format=ending,
            )
            if ending in ("csv", "html")
            else f"{path}.{ending}"
        )
        for ending in FORMATS
    }


wildcard_constraints:
    model=any_of(CONFIG.models),
    calibration=any_of(CONFIG.calibrations),
    cut=any_of(CONFIG.cuts),
    fit=any_of(CONFIG.fits),
    healing=any_of(CONFIG.healings),
    evaluation=any_of(CONFIG.evaluations),
    table=any_of(CONFIG.tables),
    figure=any_of(CONFIG.figures),
    program=any_of(PROGRAMS),
    shard=r"\d+",
    shards=r"\d+",
    fit_tokens=r"all|\d+",
    kind=any_of(fits.kinds),
    exact="|-exact",
    candidates=any_of(fits.candidates),
    unit=any_of(UNITS),


onstart:
    begin("results", logger)
    jobs_at_once = workflow.resource_settings.nodes or all_cores()
    write_readers(workflow.dag, CONFIG, jobs_at_once + DEVICES.gpu * DEVICES.count)
    if LOCAL:
        # with a limit on jobs started in a second, it plans anew every second for each job, and waits at its end
        workflow.scheduler.job_rate_limiter = None
        STEP_SERVER.start()
        if rows_first.decide(workflow.dag, paths.RESULTS):
            REMOVAL.begin()
        # where costs are measured, each job has to do its own work
        plan = (
            write_plan(workflow.dag.needrun_jobs(), paths.RESULTS)
            if CONFIG.cost is None
            else None
        )
        shell.prefix(
            shell_prefix(sys.executable, CONFIG.cost, STEP_SERVER.path, plan)
        )


onsuccess:
    STEP_SERVER.stop()
    REMOVAL.end(logger)
    remove_plan(paths.RESULTS)


onerror:
    STEP_SERVER.stop()
    REMOVAL.end(logger)
