"""The validated config, and the functions with which rules find their inputs and options."""

import gc
import importlib.util
import os
import re
import shlex
import sys
from functools import cache

import yaml

from replaceme.config.calibrations import FORWARD
from replaceme.config.healings import TrainingConfig
from replaceme.config.including import read_config
from replaceme.config.schema import parse as parse_config
from replaceme.config.cuts import MERGING, REPRESENTATIONS
from replaceme.provenance.job_cost import VARIABLE as COST_VARIABLE
from replaceme.provenance.job_cost import setting as cost_setting
from replaceme.calibration.tokens import TOKEN_FIELDS
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RESULTS_VARIABLE, sha256
from replaceme.provenance.code_hash import fingerprint
from replaceme.fitting.fit_cut import modules_of, modules_of_method
from replaceme.workflow.gpu_lock import visible
from replaceme.calibration.images import image_files
from replaceme.evaluation.labelled_images import files_of as labelled_files
from replaceme.config.command_line import to_flags
from replaceme.evaluation.overlap import all_seen_texts
from replaceme.planning.check_local import check_inputs, sparse_calibrations
from replaceme.workflow.snakemake_lock import begin, check_folders, told_when_locked
from replaceme.models.custom_code import CODE
from replaceme.steps.generate import OPTIONS as PROMPT_OPTIONS
from replaceme.reports.tables import HEALED
from replaceme.planning.user_files import (
    declared,
    hash_of_stamps,
    stamps,
    task_files,
    text_file,
)
from replaceme.planning.user_files import model_files as files_of_model
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import update_config

# planning makes millions of small objects that all stay: looking for garbage among them costs a tenth of its time
gc.set_threshold(200_000, 20, 50)

# jobs find `python` and `replaceme` of this environment even where it was not activated
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)


logger.addFilter(told_when_locked)  # of two runs in one folder, or after a kill
SCALAR = re.compile(r"[-+.\w]+")  # what may be a number, a boolean or null


def typed(value):
    """A value given with `--config`, whose nested numbers Snakemake leaves as text, with the types of YAML."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return (
        yaml.safe_load(value)
        if isinstance(value, str) and SCALAR.fullmatch(value)
        else value
    )


def validated_config():
    """The config as typed sections; every error in it stops the workflow before any job, one line each."""
    try:
        # Snakemake has read them too, but lets a key given twice pass, and knows no `include`
        files = [read_config(path) for path in workflow.configfiles]
        origin = " + ".join(one.origin for one in files) or "config"
        whole = {}
        for part in [
            *(one.sections for one in files),
            typed(workflow.config_settings.config),
        ]:
            update_config(whole, part)
        problems = [line for one in files for line in one.problems]
        checked = parse_config(whole, origin, problems)
        if workflow.is_main_process:
            check_folders("results", checked.models)
            check_inputs(checked, origin)
            for line in [*sparse_calibrations(checked), *all_seen_texts(checked)]:
                logger.warning(f"{origin}: {line}")
        return checked
    except ReplaceMeError as error:
        raise WorkflowError(str(error)) from None


CONFIG = validated_config()
if (
    CONFIG.cost is not None
):  # jobs inherit it; as an option of their commands it would run all of them again
    os.environ[COST_VARIABLE] = cost_setting("results", **CONFIG.cost.model_dump())
# jobs record what they were made from and with
os.environ[RESULTS_VARIABLE] = "results"
LOCAL = workflow.is_main_process and workflow.resource_settings.nodes is None
CLUSTER = workflow.is_main_process and not LOCAL


def devices():
    """GPUs that `device: auto` counts on: of this machine, or on a cluster those granted by `--resources gpu=`."""
    if CLUSTER:
        return workflow.global_resources.get("gpu").value or 0
    return len(visible())


GPU = int(CONFIG.device == "cuda" or (CONFIG.device == "auto" and devices() > 0))
# a check by vLLM, where that is installed, takes the device that the other checks of a model do without
VLLM_GPU = GPU * (importlib.util.find_spec("vllm") is not None)
TRAINING = tuple(TrainingConfig.model_fields)

# without this limit `gpu: 1` would limit nothing; clusters count their own devices
if LOCAL and "gpu" not in workflow.global_resources:
    if GPU > len(visible()):
        raise WorkflowError(
            "device: cuda: this machine shows no GPU; use `device: auto`"
        )
    for name, model in CONFIG.models.items():
        if GPU and model.gpus > len(visible()):
            raise WorkflowError(
                f"models.{name}.gpus: {model.gpus} asked for, {len(visible())} visible; ask for fewer"
            )
    workflow.register_resource("gpu", len(visible()))


def look_when_jobs_end(workflow):
    """On one machine Snakemake need not look for jobs each second; every look sets it a timer for another.

    So after n jobs it would look n times a second, at the size of each input of what is ready (9.27: a third of a core
    after 200 jobs). Its limit of jobs a second, which the timers are for, protects the servers of clusters.
    """
    if LOCAL and hasattr(workflow.scheduler, "job_rate_limiter"):
        workflow.scheduler.job_rate_limiter = None


NOTHING = r"(?!)"  # an empty constraint would admit everything


def any_of(names):
    """A wildcard constraint that admits exactly the configured names; none at all where there are none."""
    return "|".join(re.escape(name) for name in names) or NOTHING


def candidates_name(cut):
    """The name under which all cuts of one size, split and token subset share their candidates."""
    split = f"-{cut.groups}-{cut.search}" if cut.several else ""
    if cut.search in ("iterative", "merging"):
        split += f"-keep-{cut.keep_first}-{cut.keep_last}"
    if cut.search == "merging":
        split += "".join(f"-{getattr(cut, name)}" for name in MERGING)
    loss = f"-{cut.metric}" if cut.needs_loss else ""
    return f"{cut.size}{split}-{cut.samples or 'all'}-samples{loss}"


wildcard_constraints:
    model=any_of(CONFIG.models),
    calibration=any_of(CONFIG.calibrations),
    cut=any_of(CONFIG.cuts),
    fit=any_of(CONFIG.fits),
    healing=any_of(CONFIG.healings),
    evaluation=any_of(CONFIG.evaluations),
    table=any_of(CONFIG.tables),
    figure=any_of(CONFIG.figures),
    shard=r"\d+",
    shards=r"\d+",
    fit_tokens=r"all|\d+",
    kind=any_of(
        regression.kind
        for fit in CONFIG.fits.values()
        for regression in (fit.regression, fit.regression.before)
        if regression
    ),
    exact="|-exact",
    candidates=any_of(candidates_name(cut) for cut in CONFIG.cuts.values()),


def all_cores():
    """The cores given to the workflow, so that a job runs alone; 1 where none are given (reports, linting, clusters).

    A job on a node sees that node's cores, of which it was granted as many as were asked for where it was submitted.
    """
    if workflow.remote_exec:
        return 1
    try:
        return workflow.cores
    except WorkflowError:
        return 1


def code_of(step):
    """A parameter that changes when the code of a step does, comments and docstrings aside."""
    return fingerprint(f"replaceme.steps.{step}")


def code_of_transform(wildcards):
    """The same for a fit, with the modules that it imports by name."""
    modules = modules_of(CONFIG.fits[wildcards.fit])
    return fingerprint("replaceme.steps.fit", *modules)


def code_of_fit(step):
    """The same for a step that runs the method of a fit too, which its module does not import by name."""

    def code(wildcards):
        modules = modules_of_method(CONFIG.fits[wildcards.fit])
        return fingerprint(f"replaceme.steps.{step}", *modules)

    return code


def code_of_merge(wildcards):
    """The same for `merge`; of a model that brings code also that file's bytes, as no other copy is run."""
    code = code_of_fit("merge")(wildcards)
    return [code, sha256(CODE)] if CONFIG.fits[wildcards.fit].own_code else code


def inputs_of(files):
    """The input function of a job that reads files of the user's own, out of one that names them all."""
    return lambda wildcards: declared(files(wildcards))


def model_files(wildcards):
    """The files of a local model, whose change reruns everything."""
    return files_of_model(CONFIG.models[wildcards.model].source)


def answers_file(wildcards):
    """Where the model's answers lie that a calibration is made of."""
    return f"results/{wildcards.model}/{wildcards.calibration}/generated.jsonl"


def calibration_files(wildcards):
    """The local file from which a calibration is read, if it is one."""
    section = CONFIG.calibrations[wildcards.calibration]
    if section.prompts is not None:
        return [answers_file(wildcards)]
    return text_file(section.dataset)


def prompt_files(wildcards):
    """The local file from which the prompts of a calibration are read, if it is one."""
    return text_file(CONFIG.calibrations[prompts_of(wildcards)].dataset)


def prompts_of(wildcards):
    """The name of the calibration that gives the prompts."""
    return CONFIG.calibrations[wildcards.calibration].prompts


def token_options(wildcards):
    """Options of the tokens of a calibration; of one of answers, those of the file that holds them."""
    section = CONFIG.calibrations[wildcards.calibration]
    if section.prompts is not None:
        source = CONFIG.calibrations[section.prompts]
        section = section.answered(answers_file(wildcards), source)
    return to_flags(section, TOKEN_FIELDS)


def generate_options(wildcards):
    """Options of the answers of a model: where the prompts are, and how they are answered."""
    section = CONFIG.calibrations[wildcards.calibration]
    source = section.prompts_from(CONFIG.calibrations[section.prompts])
    return f"{to_flags(source, PROMPT_OPTIONS)} {to_flags(section.generation)}"


def mixed_tokens(wildcards):
    """The token files of the parts of a mix."""
    parts = CONFIG.calibrations[wildcards.calibration].mix
    return [f"results/{wildcards.model}/{part}/tokens.safetensors" for part in parts]


def mix_options(wildcards):
    """Options of a mix."""
    section = CONFIG.calibrations[wildcards.calibration]
    weights = " ".join(map(str, section.mix.values()))
    return f"--weights {weights} {to_flags(section, ('samples', 'seed'))}"


def calibration_stamps(wildcards):
    """Sizes and times of what a calibration is read from; of a folder of images, which may hold thousands, a hash."""
    section = CONFIG.calibrations[wildcards.calibration]
    if section.prompts is not None:
        return []  # of this workflow's own making
    images = section.images
    if images is None or not Path(images).is_dir():
        return stamps(calibration_files(wildcards))
    return [hash_of_stamps(image_files(Path(images)))]


@cache
def evaluation_stamps(name):
    """What changes with the local files of an evaluation: a hash for each set of labelled images, stamps of tasks.

    Without such files it is empty, as it was before tasks were in it, so that nothing is evaluated again for that.
    """
    sections = CONFIG.evaluations[name].zeroshot
    found = {key: labelled_files(section) for key, section in sections.items()}
    images = {key: hash_of_stamps(files) for key, files in found.items() if files}
    tasks = stamps(task_files(CONFIG.evaluations[name].include))
    return images | ({"task files": tasks} if tasks else {})


def forward_options(wildcards):
    """Options of the forward passes of a calibration."""
    section = CONFIG.calibrations[wildcards.calibration]
    return f"{to_flags(section, FORWARD)} {device_options(wildcards)}"


def device_options(wildcards):
    """Where a model runs."""
    spread = to_flags(CONFIG.models[wildcards.model], ("gpus",))
    return f"{spread} --device {CONFIG.device}"


def gpus_of(wildcards):
    """How many GPUs a job takes that runs a model."""
    return GPU * CONFIG.models[wildcards.model].gpus


def representations_option(wildcards):
    """Where a cut, or a figure of this model and text, asks for the distances that are not measured otherwise."""
    pair = f"{wildcards.model}/{wildcards.calibration}"
    shown = [
        name
        for figure, section in CONFIG.figures.items()
        if pair in figure_pairs(figure)
        for name in section.matrices
    ]
    wanted = any(cut.of_representations for cut in CONFIG.cuts.values())
    return "--representations" if wanted or set(shown) & set(REPRESENTATIONS) else ""


def braced(names):
    """Several names as bash expands them, in order: a command that spelt out thousands of paths would be too long."""
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"


def shard_files(folder, shards):
    """The sums of all shards, as bash expands them."""
    return f"{folder}/{{0..{int(shards) - 1}}}-of-{shards}.safetensors"


def evaluation_options(name):
    """Options of an evaluation."""
    section = CONFIG.evaluations[name]
    named = [("task", section.tasks), ("zeroshot", section.zeroshot)]
    flags = [
        f"--{option} {shlex.quote(f'{name}={one.model_dump_json(exclude_defaults=True)}')}"
        for option, ones in named
        for name, one in ones.items()
    ]
    return " ".join(
        [
            *flags,
            to_flags(
                section,
                ("include", "perplexity", "batch_size", "limit", "seed", "dtype"),
            ),
        ]
    )


@cache
def evaluation_files(name):
    """The task files of the user's own that are inputs."""
    return declared(task_files(CONFIG.evaluations[name].include))


def published_file(section):
    """The file of published values of a table or a figure, if it has one."""
    return [section.file] if section else []


def healing_tokens(wildcards):
    """The token file of the text that a healing trains on."""
    text = CONFIG.healings[wildcards.healing].text
    return f"results/{wildcards.model}/{text}/tokens.safetensors"


include: "common_fits.smk"
include: "common_needs.smk"
