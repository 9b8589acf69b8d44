"""The functions with which the rules of tables, figures and costs find their inputs and options."""

import functools
import hashlib
import json

from replaceme.core.files import write_json


class Names(dict):
    """Wildcards of a job that is looked up, not run: `names.model`, `names.get("shards")`."""

    __getattr__ = dict.__getitem__


def fit_folder(row):
    """The folder of the fit of a row, healed or not."""
    return f"results/{row.model}/{row.calibration}/{row.cut}/{row.fit}"


def table_rows(table):
    """The folders of the fits of a table."""
    return list(dict.fromkeys(fit_folder(row) for row in CONFIG.tables[table].pruned))


def measured_folder(row):
    """The folder of a row: that of its fit, or of the healing in it."""
    return (
        f"{fit_folder(row)}/{HEALED}/{row.healing}" if row.healing else fit_folder(row)
    )


def measured_rows(table):
    """The folders that make up a table, without the baselines: fits, and each healing after what it heals."""
    return [measured_folder(row) for row in CONFIG.tables[table].pruned]


def braced_rows(table):
    """The same, and in the same order, as words that bash expands."""
    section = CONFIG.tables[table]
    axes = [section.models, section.calibrations, section.cuts, section.fits]
    single = section.pruned[-len(section.rows) :] if section.rows else []
    words = [measured_folder(row) for row in single]
    if all(axes):
        combined = f"results/{'/'.join(map(braced, axes))}"
        healed = f"{{,/{HEALED}/{braced(section.healings)}}}"
        words.insert(0, combined + (healed if section.healings else ""))
    return words


def table_baselines(table):
    """The baseline folders of a table."""
    return [
        f"results/{model}/baseline" for model in CONFIG.tables[table].named("models")
    ]


def table_inputs(wildcards):
    """Everything that a table shows."""
    rows = table_rows(wildcards.table)
    measured = measured_files(wildcards.table)
    return {
        "measured": measured,
        "verified": [f"{folder}/verify.json" for folder in rows if measured],
        "fits": [f"{folder}/fit.json" for folder in rows],
        "cuts": sorted({f"{Path(folder).parent}/cut.json" for folder in rows}),
    }


def table_options(wildcards):
    """Options of a table."""
    section = CONFIG.tables[wildcards.table]
    baselines = " ".join(
        f"--baseline {folder}" for folder in table_baselines(wildcards.table)
    )
    rows = " ".join(braced_rows(wildcards.table))
    speed = "" if section.speed else " --no-speed"
    return f"{rows} {baselines} --evaluation {section.evaluation}{speed} --caption={shlex.quote(section.caption)}"


def reference_options(wildcards):
    """Options of the comparison of a table with published values."""
    section = CONFIG.tables[wildcards.table]
    reference = shlex.quote(section.reference.model_dump_json())
    return f"--reference {reference} --caption={shlex.quote(section.caption)}"


def measured_kinds(table):
    """The files in the folder of a row in which is what was measured of it."""
    section = CONFIG.tables[table]
    if not section.evaluation:
        return []
    return [f"evaluation/{section.evaluation}.json"] + ["speed.json"] * section.speed


def measured_files(table):
    """What was measured of the baselines and rows of a table."""
    folders = [*table_baselines(table), *measured_rows(table)]
    return [f"{folder}/{kind}" for folder in folders for kind in measured_kinds(table)]


def table_records(tables):
    """The records of what tables were made from and with."""
    rows = [row for table in tables for row in table_rows(table)]
    return {
        "models": sorted({f"results/{Path(row).parts[1]}/model.json" for row in rows}),
        "calibrations": sorted(
            {f"{Path(row).parents[1]}/tokens.safetensors" for row in rows}
            | {
                f"results/{row.model}/{CONFIG.healings[row.healing].text}/tokens.safetensors"
                for table in tables
                for row in CONFIG.tables[table].pruned
                if row.healing
            }
        ),
        "measured": sorted({one for table in tables for one in measured_files(table)}),
    }


def records_options(inputs, tables):
    """The options that name these records; several tables may name one twice."""
    options = [
        f"--{name} {shlex.join(flat(inputs[name]))}"
        for name in ("models", "calibrations")
        if inputs[name]
    ]
    measured = []
    for table in tables:
        if kinds := measured_kinds(table):
            folders = [*table_baselines(table), *braced_rows(table)]
            measured += [f"{folder}/{braced(kinds)}" for folder in folders]
    return " ".join(options + (["--measured", *measured] if measured else []))


def table_files(name):
    """A table in all formats, and beside published values where it has such; without an evaluation its models."""
    table = CONFIG.tables[name]
    if not table.evaluation:
        return [f"{row}/model/replaceme.json" for row in measured_rows(name)]
    kinds = ["csv", "md", "html", "tex", "svg"]
    compared = ["published.csv", "published.html"] if table.reference else []
    cost = ["cost.csv", "cost.html"] if CONFIG.cost is not None else []
    return [f"results/tables/{name}.{kind}" for kind in kinds + compared + cost]


def row_jobs(row):
    """The outputs of the jobs that a row of a table is made by; checks and evaluations are none of them."""
    _, model, calibration, cut, fit = Path(row).parts
    wildcards = Names(model=model, calibration=calibration, cut=cut, fit=fit)
    tokens = f"results/{model}/{calibration}/tokens.safetensors"
    found = [f"results/{model}/model.json", tokens, *cut_evidence(wildcards).values()]
    found.append(f"results/{model}/{calibration}/{cut}/cut.json")
    for path in flat_values(fit_evidence(wildcards)):
        found += sums_behind(path, wildcards)
    return list(dict.fromkeys([*found, row, f"{row}/model"]))


def flat_values(files):
    """All files of a mapping to one file or several."""
    return [path for value in files.values() for path in flat(value)]


def sums_behind(path, wildcards):
    """A file that a fit reads and, where it holds sums or what is made from sums, the files behind it."""
    name, folder = Path(path).name, Path(path).parent
    behind = []
    if name.startswith("sum-of-"):
        shards = name.removeprefix("sum-of-").removesuffix(".safetensors")
        of_kind = Names(wildcards, kind=folder.name, shards=shards)
        behind = flat_values(recycled_neurons(of_kind))
        behind += [
            f"{folder}/{shard}-of-{shards}.safetensors" for shard in range(int(shards))
        ]
    elif name.startswith("recycled-of-"):
        shards = name.removeprefix("recycled-of-").removesuffix(".safetensors")
        behind = [sums_before(Names(wildcards, kind=folder.name, shards=shards))]
    return [path, *(inner for one in behind for inner in sums_behind(one, wildcards))]


@functools.cache
def cost_jobs(table):
    """The jobs behind each row of a table."""
    return {row.removeprefix("results/"): row_jobs(row) for row in table_rows(table)}


def cost_jobs_file(wildcards):
    """A file that lists them: some hundred rows of them are longer than what Linux takes for an option."""
    path = f"results/cost/tables/{wildcards.table}.json"
    if not workflow.dryrun:
        write_json(path, cost_jobs(wildcards.table))
    return path


def cost_jobs_hash(wildcards):
    """What changes with them."""
    text = json.dumps(cost_jobs(wildcards.table))
    return hashlib.sha256(text.encode()).hexdigest()


def target_files(names):
    """The files of tables and declared figures, by their names."""
    return [
        table_files(name) if name in CONFIG.tables else f"results/figures/{name}.svg"
        for name in names
    ]


def tables_behind(names):
    """The tables among these names, and those of the declared figures among them."""
    drawn = [CONFIG.figures[name].tables for name in names if name in CONFIG.figures]
    wanted = {name for name in names if name in CONFIG.tables}.union(*drawn)
    return [table for table in CONFIG.tables if table in wanted]


def figure_files(names):
    """The distances of every model and text, choices of cuts, and healings, of the tables behind these names."""
    tables = tables_behind(names)
    rows = [Path(row) for table in tables for row in table_rows(table)]
    chosen = {row.parent for row in rows if CONFIG.cuts[row.parent.name].start is None}
    return sorted(
        {f"{row.parents[1]}/distances.svg" for row in rows}
        | {f"{folder}/cut.svg" for folder in chosen}
        | {
            f"{row}/healing.svg"
            for table in tables
            for row in measured_rows(table)
            if Path(row).parent.name == HEALED
        }
    )


def figure_pairs(figure):
    """`model/calibration` of all rows of a figure's tables."""
    rows = [row for table in CONFIG.figures[figure].tables for row in table_rows(table)]
    return sorted({"/".join(Path(row).parts[1:3]) for row in rows})


def figure_inputs(wildcards):
    """Everything that a declared figure shows."""
    figure = CONFIG.figures[wildcards.figure]
    tables = [] if figure.kind == "heatmap" else figure.tables
    pairs = figure_pairs(wildcards.figure) if figure.matrices else []
    return {
        "tables": [f"results/tables/{table}.csv" for table in tables],
        "costs": [
            f"results/tables/{table}.cost.csv" for table in tables if figure.needs_cost
        ],
        "distances": [f"results/{pair}/distances.safetensors" for pair in pairs],
        "published": declared(published_file(figure.published)),
    }


def figure_options(wildcards):
    """Options of a declared figure."""
    figure, inputs = CONFIG.figures[wildcards.figure], figure_inputs(wildcards)
    options = [f"--figure {shlex.quote(figure.model_dump_json(exclude_unset=True))}"]
    options += [f"--table {shlex.quote(path)}" for path in inputs["tables"]]
    options += [f"--cost {shlex.quote(path)}" for path in inputs["costs"]]
    options += [
        f"--distances {shlex.quote(f'{pair}={path}')}"
        for pair, path in zip(figure_pairs(wildcards.figure), inputs["distances"])
    ]
    if figure.from_config is not None:
        section, key = figure.from_config
        tables = [CONFIG.tables[table] for table in figure.tables]
        names = sorted({one for table in tables for one in table.named(f"{section}s")})
        entries = getattr(CONFIG, f"{section}s")
        numbers = {name: getattr(entries[name], key) for name in names}
        options.append(f"--numbers {shlex.quote(json.dumps(numbers))}")
    return " ".join(options)
