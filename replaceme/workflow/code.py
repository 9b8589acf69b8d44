"""Parameters of jobs that change when the code that they run does; comments and docstrings aside."""

from replaceme.config.result_paths import Names
from replaceme.config.schema import Config
from replaceme.core.files import sha256
from replaceme.exports.registry import PROGRAMS
from replaceme.fitting.fit_cut import modules_of, modules_of_method
from replaceme.models.custom_code import CODE
from replaceme.provenance.code_hash import fingerprint


def code_of(step: str, *modules: str) -> str:
    """Return the hash of the code of a step, and of modules that it imports by a computed name."""
    return fingerprint(f"replaceme.steps.{step}", *modules)


def code_of_fit(config: Config, names: Names) -> str:
    """Return the hash of the code of a fit."""
    return code_of("fit", *modules_of(config.fits[names.fit]))


def code_of_merge(config: Config, names: Names) -> list[str]:
    """Return the hash of the code of a merge, and for a model that brings code that of the code file, as no other copy
    is run.
    """
    fit, cut = config.fits[names.fit], config.cuts[names.cut]
    own_code = fit.own_code or cut.own_code
    return [code_of("merge", *modules_of_method(fit)), *([sha256(CODE)] if own_code else [])]


def code_of_export(names: Names) -> str:
    """Return the hash of the code that tries a model with a program, and of the file that runs in its process."""
    modules = ("check", "worker", PROGRAMS[names.program].file)
    return fingerprint(*(f"replaceme.exports.{module}" for module in modules))


def code_of_verify(config: Config, names: Names) -> str:
    """Return the hash of the code of a check."""
    return code_of("verify", *modules_of_method(config.fits[names.fit]))
