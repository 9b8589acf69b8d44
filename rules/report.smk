rule table:
    """One result table, in four formats."""
    input:
        unpack(table_inputs),
    output:
        csv=report(
            "results/tables/{table}.csv",
            caption="captions/table.rst",
            category="Tables",
            subcategory="measured",
            labels={"table": "{table}", "format": "csv"},
        ),
        html=report(
            "results/tables/{table}.html",
            caption="captions/table.rst",
            category="Tables",
            subcategory="measured",
            labels={"table": "{table}", "format": "html"},
        ),
        md="results/tables/{table}.md",
        tex="results/tables/{table}.tex",
    log:
        "results/logs/tables/{table}.log",
    benchmark:
        "results/benchmarks/tables/{table}.tsv"
    localrule: True
    params:
        options=table_options,
        prefix=lambda wildcards, output: Path(output.csv).with_suffix(""),
        code=code_of("table"),
    message:
        "table {wildcards.table}"
    shell:
        "replaceme table {params.options} --out {params.prefix:q} 2> {log:q}"


rule compare:
    """A table beside published values, in their layout."""
    input:
        unpack(lambda wildcards: table_records([wildcards.table])),
        table="results/tables/{table}.csv",
        published=lambda wildcards: declared(
            published_file(CONFIG.tables[wildcards.table].reference)
        ),
    output:
        csv=report(
            "results/tables/{table}.published.csv",
            caption="captions/published.rst",
            category="Tables",
            subcategory="beside the published",
            labels={"table": "{table}", "format": "csv"},
        ),
        html=report(
            "results/tables/{table}.published.html",
            caption="captions/published.rst",
            category="Tables",
            subcategory="beside the published",
            labels={"table": "{table}", "format": "html"},
        ),
        md="results/tables/{table}.published.md",
        tex="results/tables/{table}.published.tex",
    log:
        "results/logs/tables/{table}.published.log",
    benchmark:
        "results/benchmarks/tables/{table}.published.tsv"
    localrule: True
    params:
        options=reference_options,
        stamps=lambda wildcards: stamps(
            published_file(CONFIG.tables[wildcards.table].reference)
        ),
        records=lambda wildcards, input: records_options(input, [wildcards.table]),
        caption=lambda wildcards: CONFIG.tables[wildcards.table].caption,
        prefix=lambda wildcards, output: Path(output.csv).with_suffix(""),
        code=code_of("compare"),
    message:
        "table {wildcards.table} beside the published values"
    shell:
        "replaceme compare {input.table:q} {params.options} {params.records} --out {params.prefix:q} 2> {log:q}"


rule cost:
    """What each row of a table took to make."""
    input:
        # of their costs nothing is declared: where those are missing, no job runs again
        lambda wildcards: [
            f"{row}/model/replaceme.json" for row in table_rows(wildcards.table)
        ],
    output:
        csv=report(
            "results/tables/{table}.cost.csv",
            caption="captions/cost.rst",
            category="Tables",
            subcategory="cost",
            labels={"table": "{table}", "format": "csv"},
        ),
        html=report(
            "results/tables/{table}.cost.html",
            caption="captions/cost.rst",
            category="Tables",
            subcategory="cost",
            labels={"table": "{table}", "format": "html"},
        ),
        md="results/tables/{table}.cost.md",
        tex="results/tables/{table}.cost.tex",
    log:
        "results/logs/tables/{table}.cost.log",
    benchmark:
        "results/benchmarks/tables/{table}.cost.tsv"
    localrule: True
    params:
        jobs=cost_jobs_file,
        listed=cost_jobs_hash,
        caption=lambda wildcards: CONFIG.tables[wildcards.table].caption,
        prefix=lambda wildcards, output: Path(output.csv).with_suffix(""),
        code=code_of("cost"),
    message:
        "cost of table {wildcards.table}"
    shell:
        "replaceme cost results --jobs {params.jobs:q} --caption={params.caption:q} --out {params.prefix:q} 2> {log:q}"


rule figure_table:
    """Accuracy and perplexity of a table over the compression ratio."""
    input:
        "results/tables/{table}.csv",
    output:
        report(
            "results/tables/{table}.svg",
            caption="captions/figure.rst",
            category="Figures",
            subcategory="of tables",
            labels={"figure": "{table}", "of": "table"},
        ),
    log:
        "results/logs/tables/figures/{table}.log",
    benchmark:
        "results/benchmarks/tables/figures/{table}.tsv"
    localrule: True
    params:
        code=code_of("figure"),
    message:
        "figure of table {wildcards.table}"
    shell:
        "replaceme figure table {input:q} --title {wildcards.table:q} --out {output:q} 2> {log:q}"


rule figure_distances:
    """Heat maps of the distances between blocks."""
    input:
        "results/{model}/{calibration}/distances.safetensors",
    output:
        report(
            "results/{model}/{calibration}/distances.svg",
            caption="captions/distances.rst",
            category="Figures",
            subcategory="distances of blocks",
            labels={"figure": "{model}, {calibration}", "of": "distances"},
        ),
    log:
        "results/logs/{model}/{calibration}/distances-figure.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/distances-figure.tsv"
    localrule: True
    params:
        title="{model} on {calibration}",
        code=code_of("figure"),
    message:
        "figure of the distances of {wildcards.model} on {wildcards.calibration}"
    shell:
        "replaceme figure distances {input:q} --title {params.title:q} --out {output:q} 2> {log:q}"


rule figure_cut:
    """The metric of every candidate cut, and the choice."""
    input:
        "results/{model}/{calibration}/{cut}/cut.json",
    output:
        report(
            "results/{model}/{calibration}/{cut}/cut.svg",
            caption="captions/cut.rst",
            category="Figures",
            subcategory="choice of cuts",
            labels={"figure": "{model}, {calibration}, {cut}", "of": "cut"},
        ),
    log:
        "results/logs/{model}/{calibration}/{cut}/cut-figure.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/cut-figure.tsv"
    localrule: True
    params:
        title="{model} on {calibration}: {cut}",
        code=code_of("figure"),
    message:
        "figure of cut {wildcards.cut} of {wildcards.model} on {wildcards.calibration}"
    shell:
        "replaceme figure cut {input:q} --title {params.title:q} --out {output:q} 2> {log:q}"


rule plot:
    """A figure that the config declares, and the numbers drawn."""
    input:
        unpack(figure_inputs),
    output:
        svg=report(
            "results/figures/{figure}.svg",
            caption="captions/declared.rst",
            category="Figures",
            subcategory="declared",
            labels={"figure": "{figure}", "of": "the config"},
        ),
        csv="results/figures/{figure}.csv",
    log:
        "results/logs/figures/{figure}.log",
    benchmark:
        "results/benchmarks/figures/{figure}.tsv"
    localrule: True
    params:
        options=figure_options,
        stamps=lambda wildcards: stamps(
            published_file(CONFIG.figures[wildcards.figure].published)
        ),
        prefix=lambda wildcards, output: Path(output.csv).with_suffix(""),
        caption=lambda wildcards: CONFIG.figures[wildcards.figure].caption,
        code=code_of("plot"),
    message:
        "figure {wildcards.figure}"
    shell:
        "replaceme plot {params.options} --out {params.prefix:q} 2> {log:q}"


rule provenance:
    """What the numbers of all tables that are made by default were made from and with."""
    input:
        **table_records(tables_behind(CONFIG.default_names)),
    output:
        html=report(
            "results/provenance.html",
            caption="captions/provenance.rst",
            category="Provenance",
            labels={"of": "all tables", "format": "html"},
        ),
        md="results/provenance.md",
    log:
        "results/logs/provenance.log",
    benchmark:
        "results/benchmarks/provenance.tsv"
    localrule: True
    params:
        records=lambda wildcards, input: records_options(
            input, tables_behind(CONFIG.default_names)
        ),
        prefix=lambda wildcards, output: Path(output.html).with_suffix(""),
        code=code_of("provenance"),
    message:
        "provenance of all tables"
    shell:
        "replaceme provenance {params.records} --out {params.prefix:q} 2> {log:q}"


rule figure_healing:
    """The loss of a healing over its steps."""
    input:
        "results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/healing.json",
    output:
        report(
            "results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/healing.svg",
            caption="captions/healing.rst",
            category="Figures",
            subcategory="healings",
            labels={
                "figure": "{model}, {calibration}, {cut}, {fit}, {healing}",
                "of": "healing",
            },
        ),
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/healed/{healing}/healing-figure.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/healed/{healing}/healing-figure.tsv"
    localrule: True
    params:
        title="{model} on {calibration}: {cut}, {fit}, healed by {healing}",
        code=code_of("figure"),
    message:
        "figure of healing {wildcards.healing} of {wildcards.fit}, {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "replaceme figure healing {input:q} --title {params.title:q} --out {output:q} 2> {log:q}"


# each table and each figure is a target by its name, where that can be one
for table_name in CONFIG.tables:
    if table_name.isidentifier() and table_name not in dir(rules):

        rule:
            name:
                table_name
            input:
                table_files(table_name),


for figure_name in CONFIG.figures:
    if figure_name.isidentifier() and figure_name not in dir(rules):

        rule:
            name:
                figure_name
            input:
                f"results/figures/{figure_name}.svg",


for target_name in CONFIG.targets:

    rule:
        name:
            target_name
        input:
            target_files(CONFIG.targets[target_name]),
