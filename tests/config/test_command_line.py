"""A section of the config -> command line -> the same section; `--help` of every step says everything."""

import argparse
import shlex

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replaceme.calibration.documents import KINDS
from replaceme.calibration.tokens import TOKEN_FIELDS
from replaceme.cli import main
from replaceme.config import schema
from replaceme.config.calibrations import MICRO, suffix_of
from replaceme.config.command_line import add_options, from_options, option_of, to_flags
from replaceme.config.evaluations import (
    NAMED,
    OF_DIVERGENCE,
    OPTIONS,
    EvaluationConfig,
    TaskConfig,
    ZeroShotConfig,
    evaluation_flags,
)
from replaceme.config.fits import METHODS, fit_config
from replaceme.config.units import UNITS
from replaceme.core.places import HALF
from replaceme.steps import evaluate
from replaceme.steps.index import STEPS

ODD = ["none", "-", "--pack", "-x 1", "a b", "'", '"$HOME"', "=", ""]
ANY = st.text(max_size=12).filter(str.isprintable)
# argparse of Python 3.11 drops a value of two dashes, wherever it stands
TEXT = (st.sampled_from(ODD) | ANY).filter(lambda text: text != "--")

COUNT = st.integers(2, 10_000)
MAYBE_TEXT, MAYBE_COUNT = st.none() | TEXT, st.none() | COUNT
FINITE = st.floats(0, 1e300, allow_subnormal=False)
DTYPES = ["auto", "bfloat16", "float16", "float32"]


def cuts(size):
    by_distance = {
        "metric": st.sampled_from(["cosine", "angular"]),
        "position": st.sampled_from(["all", "last"]),
        "samples": st.none(),
    }
    after_fit = {"metric": st.sampled_from(["residual", "cosine_after_fit"]), "samples": MAYBE_COUNT}
    after_fit["halves"] = st.booleans()
    return st.one_of(
        st.builds(schema.CutConfig, **size, **how)
        for how in ({"start": COUNT | COUNT.map(HALF.__add__)}, by_distance, after_fit)
    )


DATASET = TEXT.filter(lambda text: text not in MICRO and suffix_of(text) not in KINDS)  # of which less can be told
SECTIONS = {
    "model": st.builds(schema.ModelConfig, source=TEXT, revision=MAYBE_TEXT),
    "calibration": st.builds(
        schema.CalibrationConfig, dataset=DATASET, name=MAYBE_TEXT, revision=MAYBE_TEXT, split=TEXT,
        conversations=MAYBE_TEXT, samples=COUNT, tokens=COUNT, pack=st.none() | st.booleans(),
        seed=st.integers(0, 2**31 - 1), shards=COUNT, batch_size=COUNT, dtype=st.sampled_from([*DTYPES, "float64"]),
    ),
    "cut in blocks": cuts({"blocks": COUNT}),
    "cut as a ratio": cuts(
        {"ratio": st.floats(0, 1, exclude_min=True, exclude_max=True), "of": st.sampled_from([*UNITS])}
    ),
    "full fit": st.builds(schema.FitConfig, ridge=FINITE, ridge_relative=FINITE),
    "identity": st.builds(schema.FitConfig, transform=st.just("identity")),
    "method": st.builds(
        fit_config,
        method=st.sampled_from(["svd_llm", "slicegpt"]),
        estimation=st.sampled_from(["parallel", "sequential"]),
    ),
    "trained method": st.builds(
        fit_config, method=st.just("llm_streamline"), learning_rate=st.floats(1e-9, 1), epochs=COUNT,
        batch_tokens=COUNT, order_seed=COUNT,
    ),
    "speed": st.builds(
        schema.SpeedConfig, prompt_tokens=COUNT, new_tokens=COUNT, batch_size=COUNT, repeats=COUNT, warmup=COUNT
    ),
}  # fmt: skip


def round_trip(section, only=()):
    parser = argparse.ArgumentParser(exit_on_error=False)
    kind = METHODS if type(section) in METHODS.values() else type(section)
    add_options(parser, kind, only)
    return from_options(parser.parse_args(shlex.split(to_flags(section, only))), kind, only)


@pytest.mark.parametrize("kind", SECTIONS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_flags_and_back_is_the_identity(kind, data):
    section = data.draw(SECTIONS[kind])
    assert round_trip(section) == section


@given(st.none() | COUNT, COUNT, st.integers(0, 2**31 - 1), st.sampled_from(DTYPES), MAYBE_TEXT)
@example(None, 16, 1234, "auto", "none")
@settings(max_examples=60, deadline=None)
def test_evaluation_options(limit, batch_size, seed, dtype, include):
    values = {"limit": limit, "batch_size": batch_size, "seed": seed, "dtype": dtype, "include": include}
    section = EvaluationConfig(tasks={"piqa": TaskConfig()}, perplexity="piqa", **values)
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, EvaluationConfig, OPTIONS)
    args = parser.parse_args(shlex.split(to_flags(section, OPTIONS)))
    args.tasks = {"piqa": {}}
    assert from_options(args, EvaluationConfig) == section


@pytest.mark.parametrize(
    "section",
    [
        EvaluationConfig(
            tasks={
                "piqa": TaskConfig(fewshot=5),
                "arc_easy": TaskConfig(metric="exact_match,strict", in_average=False),
            },
            include="my tasks",
            perplexity="piqa",
            limit=3,
        ),
        EvaluationConfig(
            zeroshot={"photos": ZeroShotConfig(images="a b/$c", metrics=["acc1", "acc5"])}, dtype="float32"
        ),
    ],
    ids=["tasks", "zeroshot"],
)
def test_an_evaluation_as_flags_is_what_the_step_reads(section):
    parser = argparse.ArgumentParser()
    evaluate.arguments(parser)
    args = parser.parse_args(["model", "--out", "x", *shlex.split(evaluation_flags(section))])
    assert evaluate.section_of(args) == section


def test_every_field_of_an_evaluation_is_an_option():
    assert {*OPTIONS, *NAMED, *OF_DIVERGENCE} == EvaluationConfig.model_fields.keys()


def test_defaults_are_not_spelt_out():
    assert to_flags(schema.FitConfig()) == ""
    assert to_flags(schema.CalibrationConfig(dataset="micro", samples=4)) == "--dataset=micro --samples=4"
    assert to_flags(schema.CalibrationConfig(dataset="micro", pack=False)) == "--dataset=micro --no-pack"
    assert to_flags(schema.CutConfig(blocks=2, samples=None), ("samples",)) == "--samples=none"
    assert to_flags(schema.CalibrationConfig(dataset="micro", samples=4), ("seed",)) == ""


def test_options_are_validated_like_the_config(refuses):
    parser = argparse.ArgumentParser()
    add_options(parser, schema.CutConfig)
    with refuses("options: top level: give either blocks or ratio"):
        from_options(parser.parse_args(["--blocks", "2", "--ratio", "0.5"]), schema.CutConfig)
    with refuses("options: blocks: Input should be greater than or equal to 1"):
        from_options(parser.parse_args(["--blocks", "0"]), schema.CutConfig)


def test_one_option_is_checked_without_the_rest_of_its_section(refuses):
    assert option_of(argparse.Namespace(shards=3), schema.CalibrationConfig, "shards") == 3
    assert option_of(argparse.Namespace(), schema.CalibrationConfig, "shards") == 1
    with refuses("options: tolerance: Input should be greater than 0 (found 0.0)"):
        option_of(argparse.Namespace(tolerance=0.0), schema.CalibrationConfig, "tolerance")


def test_only_the_options_meant_for_a_section_reach_it():
    args = argparse.Namespace(blocks=2, samples=200)
    assert from_options(args, schema.CutConfig, ("blocks",)).samples == 64


HELD = {
    "tokens": [(schema.CalibrationConfig, TOKEN_FIELDS)],
    "distances": [(schema.CalibrationConfig, ("batch_size", "dtype"))],
    "candidates": [(schema.CutConfig, ("blocks", "ratio", "samples"))],
    "cut": [(schema.CutConfig, ())],
    "gram": [(schema.CalibrationConfig, ("shards", "batch_size", "dtype"))],
    "rows": [(schema.CalibrationConfig, ("batch_size", "dtype")), (schema.FitConfig, ("fit_tokens",))],
    "fit": [(section, ()) for section in METHODS.values()],
    "evaluate": [(schema.EvaluationConfig, ("include", "perplexity", "batch_size", "limit", "seed", "dtype"))],
    "speed": [(schema.SpeedConfig, ())],
    "prune": [(schema.CalibrationConfig, ("dataset", "samples")), (schema.CutConfig, ("blocks", "ratio", "start"))],
}


@pytest.mark.parametrize("step", STEPS)
def test_help_mentions_every_option(step, capsys):
    with pytest.raises(SystemExit) as left:
        main([step, "--help-all"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for section, only in HELD.get(step, []):
        for name, field in section.model_fields.items():
            if not only or name in only:
                assert f"--{name.replace('_', '-')}" in shown and field.description in shown, name
