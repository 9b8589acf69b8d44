rule table:
    """Collect a result table, in four formats."""
    input:
        unpack(tables.inputs),
    output:
        **formats(paths.TABLE, "table", subcategory="measured", table="{table}"),
    log:
        log_of(paths.TABLE),
    benchmark:
        benchmark_of(paths.TABLE)
    localrule: True
    params:
        options=tables.options,
        prefix=stem,
        code=code_of("table"),
    message:
        "table {wildcards.table}"
    shell:
        "replaceme table {params.options} --out {params.prefix:q} 2> {log:q}"


rule compare:
    """Show a table beside published values, in their layout."""
    input:
        unpack(tables.records_of),
        table=f"{paths.TABLE}.csv",
        published=tables.published,
    output:
        **formats(
            paths.COMPARED,
            "published",
            subcategory="beside the published",
            table="{table}",
        ),
    log:
        log_of(paths.COMPARED),
    benchmark:
        benchmark_of(paths.COMPARED)
    localrule: True
    params:
        reference=tables.reference_option,
        caption=tables.caption_option,
        stamps=tables.published_stamps,
        records=tables.records_options_of,
        prefix=stem,
        code=code_of("compare"),
    message:
        "table {wildcards.table} beside the published values"
    shell:
        "replaceme compare {input.table:q} {params.reference} {params.caption} {params.records} --out {params.prefix:q} 2> {log:q}"


rule cost:
    """Add up the cost of making each row of a table."""
    input:
        tables.checkpoints,
    output:
        **formats(paths.COST, "cost", subcategory="cost", table="{table}"),
    log:
        log_of(paths.COST),
    benchmark:
        benchmark_of(paths.COST)
    localrule: True
    params:
        # asked when the job is planned: as the rules are read, every run looks like a real one
        jobs=lambda wildcards: tables.write_cost_jobs(wildcards, workflow.dryrun),
        listed=tables.cost_jobs_hash,
        caption=tables.caption_option,
        prefix=stem,
        code=code_of("cost"),
    message:
        "cost of table {wildcards.table}"
    shell:
        "replaceme cost results --jobs {params.jobs:q} {params.caption} --out {params.prefix:q} 2> {log:q}"


rule provenance:
    """Show the sources, versions and machines of all tables that are made by default."""
    input:
        **tables.records(figures.tables_behind(CONFIG.default_names)),
    output:
        html=shown(
            f"{paths.PROVENANCE}.html",
            "provenance",
            "3. Provenance",
            of="all tables",
            format="html",
        ),
        md=f"{paths.PROVENANCE}.md",
    log:
        log_of(paths.PROVENANCE),
    benchmark:
        benchmark_of(paths.PROVENANCE)
    localrule: True
    params:
        records=lambda wildcards: tables.records_options(
            figures.tables_behind(CONFIG.default_names)
        ),
        prefix=stem,
        code=code_of("provenance"),
    message:
        "provenance of all tables"
    shell:
        "replaceme provenance {params.records} --out {params.prefix:q} 2> {log:q}"


rule figure_table:
    """Draw accuracy and perplexity of a table over the compression ratio."""
    input:
        f"{paths.TABLE}.csv",
    output:
        shown(
            f"{paths.TABLE}.svg",
            "figure",
            "2. Figures",
            "of tables",
            figure="{table}",
            of="table",
        ),
    log:
        log_of(paths.TABLE_FIGURE),
    benchmark:
        benchmark_of(paths.TABLE_FIGURE)
    localrule: True
    params:
        kind="table",
        title="{table}",
        code=code_of("figure"),
    message:
        "figure {output}"
    shell:
        "replaceme figure {params.kind} {input:q} --title {params.title:q} --out {output:q} 2> {log:q}"


use rule figure_table as figure_distances with:
    input:
        paths.DISTANCES,
    output:
        shown(
            paths.DISTANCES_FIGURE,
            "distances",
            "2. Figures",
            "distances of blocks",
            figure="{model}, {calibration}",
            of="distances",
        ),
    log:
        log_of(paths.DISTANCES, "distances-figure"),
    benchmark:
        benchmark_of(paths.DISTANCES, "distances-figure")
    params:
        kind="distances",
        title="{model} on {calibration}",
        code=code_of("figure"),


use rule figure_table as figure_enough with:
    input:
        paths.ENOUGH,
    output:
        shown(
            paths.ENOUGH_FIGURE,
            "enough",
            "2. Figures",
            "calibration texts",
            figure="{model}, {calibration}",
            of="how much text is enough",
        ),
    log:
        log_of(paths.ENOUGH, "enough-figure"),
    benchmark:
        benchmark_of(paths.ENOUGH, "enough-figure")
    params:
        kind="enough",
        title="{model} on {calibration}",
        code=code_of("figure"),


use rule figure_table as figure_cut with:
    input:
        paths.CUT,
    output:
        shown(
            paths.CUT_FIGURE,
            "cut",
            "2. Figures",
            "choice of cuts",
            figure="{model}, {calibration}, {cut}",
            of="cut",
        ),
    log:
        log_of(paths.CUT, "cut-figure"),
    benchmark:
        benchmark_of(paths.CUT, "cut-figure")
    params:
        kind="cut",
        title="{model} on {calibration}: {cut}",
        code=code_of("figure"),


use rule figure_table as figure_healing with:
    input:
        paths.HEALING,
    output:
        shown(
            paths.HEALING_FIGURE,
            "healing",
            "2. Figures",
            "healings",
            figure="{model}, {calibration}, {cut}, {fit}, {healing}",
            of="healing",
        ),
    log:
        log_of(paths.HEALING, "healing-figure"),
    benchmark:
        benchmark_of(paths.HEALING, "healing-figure")
    params:
        kind="healing",
        title="{model} on {calibration}: {cut}, {fit}, healed by {healing}",
        code=code_of("figure"),


rule figure_declared:
    """Draw a figure that the config declares, and write the numbers drawn."""
    input:
        unpack(figures.inputs),
    output:
        svg=shown(
            f"{paths.FIGURE}.svg",
            "declared",
            "2. Figures",
            "declared",
            figure="{figure}",
            of="the config",
        ),
        csv=f"{paths.FIGURE}.csv",
    log:
        log_of(paths.FIGURE),
    benchmark:
        benchmark_of(paths.FIGURE)
    localrule: True
    params:
        options=figures.options,
        stamps=figures.published_stamps,
        caption=lambda wildcards: CONFIG.figures[wildcards.figure].caption,
        code=code_of("figure"),
    message:
        "figure {wildcards.figure}"
    shell:
        "replaceme figure declared {params.options} --out {output.svg:q} 2> {log:q}"


# each table, each figure and each of `targets` is a target by its name, where that can be one
for target_name, files in figures.targets():
    if target_name not in dir(rules):

        rule:
            name:
                target_name
            input:
                files,
