rule table:
    """One result table, in four formats."""
    input:
        unpack(table_inputs),
    output:
        csv=report(
            "results/tables/{table}.csv",
            caption="captions/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "csv"},
        ),
        html=report(
            "results/tables/{table}.html",
            caption="captions/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "html"},
        ),
        md="results/tables/{table}.md",
        tex="results/tables/{table}.tex",
    log:
        "results/logs/tables/{table}.log",
    benchmark:
        "results/benchmarks/tables/{table}.tsv"
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
        table="results/tables/{table}.csv",
        published=lambda wildcards: CONFIG.tables[wildcards.table].reference.file,
    output:
        csv=report(
            "results/tables/{table}.published.csv",
            caption="captions/published.rst",
            category="Tables",
            labels={"table": "{table}, beside the published", "format": "csv"},
        ),
        md="results/tables/{table}.published.md",
    log:
        "results/logs/tables/{table}.published.log",
    benchmark:
        "results/benchmarks/tables/{table}.published.tsv"
    params:
        options=reference_options,
        prefix=lambda wildcards, output: Path(output.csv).with_suffix(""),
        code=code_of("compare"),
    message:
        "table {wildcards.table} beside the published values"
    shell:
        "replaceme compare {input.table:q} {params.options} --out {params.prefix:q} 2> {log:q}"


rule figure_table:
    """Accuracy and perplexity of a table over the compression ratio."""
    input:
        "results/tables/{table}.csv",
    output:
        report(
            "results/tables/{table}.svg",
            caption="captions/figure.rst",
            category="Figures",
            labels={"figure": "{table}", "of": "table"},
        ),
    log:
        "results/logs/tables/figures/{table}.log",
    benchmark:
        "results/benchmarks/tables/figures/{table}.tsv"
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
            labels={"figure": "{model}, {calibration}", "of": "distances"},
        ),
    log:
        "results/logs/{model}/{calibration}/distances-figure.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/distances-figure.tsv"
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
            labels={"figure": "{model}, {calibration}, {cut}", "of": "cut"},
        ),
    log:
        "results/logs/{model}/{calibration}/{cut}/cut-figure.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/cut-figure.tsv"
    params:
        title="{model} on {calibration}: {cut}",
        code=code_of("figure"),
    message:
        "figure of cut {wildcards.cut} of {wildcards.model} on {wildcards.calibration}"
    shell:
        "replaceme figure cut {input:q} --title {params.title:q} --out {output:q} 2> {log:q}"


# each table is a target by its name, where that can be one
for table_name in CONFIG.tables:
    if table_name.isidentifier() and table_name not in dir(rules):

        rule:
            name:
                table_name
            input:
                table_files(table_name),


for target_name in CONFIG.targets:

    rule:
        name:
            target_name
        input:
            target_files(CONFIG.targets[target_name]),
