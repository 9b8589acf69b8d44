rule gram:
    """Accumulate the statistics of a cut over one shard of the calibration tokens."""
    input:
        unpack(fits.recycled_neurons),
        model=paths.MODEL,
        tokens=paths.TOKENS,
        cut=paths.CUT,
    output:
        paths.SHARD,
    log:
        log_of(paths.SHARD),
    benchmark:
        benchmark_of(paths.SHARD)
    priority: GATHERS
    threads: 1
    resources:
        **takes("gram"),
        gpu=models.gpus,
    params:
        options=models.forward_options,
        regression=fits.regression_options,
        recycled=fits.recycled_options,
        code=code_of("gram"),
    message:
        "gram of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}: shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme gram {input.model:q} {input.tokens:q} {input.cut:q}"
        " --shard {wildcards.shard} --shards {wildcards.shards} {params.options} {params.regression} {params.recycled}"
        " --threads {threads} --out {output:q} 2> {log:q}"


rule recycle:
    """Choose the recycled neurons of the carriers and their new work."""
    input:
        unpack(fits.recycled_text),
        model=paths.MODEL,
        statistics=fits.sum_before,
    output:
        paths.RECYCLED,
    log:
        log_of(paths.RECYCLED),
    benchmark:
        benchmark_of(paths.RECYCLED)
    priority: GATHERS
    threads: 1
    resources:
        **takes("recycle"),
        gpu=models.gpus,
    params:
        options=fits.regression_options,
        text=fits.recycled_text_options,
        forward=models.forward_options,
        code=code_of("recycle"),
    message:
        "neurons to recycle of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme recycle"
        " {input.model:q} {input.statistics:q} {params.options} {params.text} {params.forward} --threads {threads} --out {output:q} 2> {log:q}"


rule sum:
    """Add the statistics of all shards of a cut."""
    input:
        fits.shards_of_sum,
    output:
        paths.SUM,
    log:
        log_of(paths.SUM),
    benchmark:
        benchmark_of(paths.SUM)
    priority: GATHERS
    resources:
        **takes("sum"),
    params:
        shards=fits.shards_option,
        code=code_of("sum"),
    message:
        "sum of {wildcards.shards} shards of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme sum {params.shards} --out {output:q} 2> {log:q}"


rule rows:
    """Store the regressed rows and targets of a cut, token by token; deleted when the fits over rows are done."""
    input:
        unpack(fits.recycled_neurons),
        model=paths.MODEL,
        tokens=paths.TOKENS,
        cut=paths.CUT,
    output:
        temp(directory(paths.ROWS)),
    log:
        log_of(paths.ROWS),
    benchmark:
        benchmark_of(paths.ROWS)
    priority: rows_first.of_rows
    threads: 1
    resources:
        **takes("rows"),
        gpu=models.gpus,
    params:
        options=models.forward_options,
        rows=fits.rows_options,
        recycled=fits.recycled_options,
        code=code_of("rows"),
    message:
        "rows of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}: {wildcards.fit_tokens} tokens"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme rows {input.model:q} {input.tokens:q} {input.cut:q}"
        " {params.options} {params.rows} {params.recycled} --threads {threads} --out {output:q} 2> {log:q}"


rule transform:
    """Fit the linear map that replaces the removed blocks."""
    input:
        unpack(fits.fit_evidence),
        model=paths.MODEL,
        cut=paths.CUT,
    output:
        transform=paths.TRANSFORM,
        report=paths.FIT,
    log:
        log_of(paths.FIT),
    benchmark:
        benchmark_of(paths.FIT)
    priority: rows_first.of_fit
    threads: 1
    resources:
        **takes("transform"),
        # the model's, which its text may take; none where there is nothing to solve
        gpu=lambda wildcards: (
            0 if CONFIG.fits[wildcards.fit].unfitted else models.gpus(wildcards)
        ),
    params:
        evidence=lambda wildcards, input: evidence_options(input),
        options=fits.fit_options,
        forward=models.forward_options,
        folder=lambda wildcards: at(paths.OF_FIT, wildcards),
        code=partial(code.code_of_fit, CONFIG),
    message:
        "fit {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme fit {input.model:q} {input.cut:q} {params.evidence}"
        " {params.options} {params.forward} --threads {threads} --out {params.folder:q} 2> {log:q}"
