rule merge:
    """The shortened checkpoint, with the transform folded in."""
    input:
        model="results/{model}/model.json",
        cut="results/{model}/{calibration}/{cut}/cut.json",
        transform="results/{model}/{calibration}/{cut}/{fit}/transform.safetensors",
    output:
        config="results/{model}/{calibration}/{cut}/{fit}/model/config.json",
        card="results/{model}/{calibration}/{cut}/{fit}/model/README.md",
        record="results/{model}/{calibration}/{cut}/{fit}/model/replaceme.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/merge.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/merge.tsv"
    resources:
        mem_mb=memory("merge"),
        runtime=minutes("merge"),
    params:
        folder=lambda wildcards, output: Path(output.record).parent,
        code=code_of_merge,
    message:
        "merge {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme merge {input.model:q} {input.cut:q} {input.transform:q} --out {params.folder:q} 2> {log:q}"


rule verify:
    """The shortened checkpoint as a fresh process with plain transformers finds it, against the original."""
    input:
        model="results/{model}/model.json",
        cut="results/{model}/{calibration}/{cut}/cut.json",
        transform="results/{model}/{calibration}/{cut}/{fit}/transform.safetensors",
        merged="results/{model}/{calibration}/{cut}/{fit}/model/replaceme.json",
    output:
        "results/{model}/{calibration}/{cut}/{fit}/verify.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/verify.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/verify.tsv"
    # before what is measured of the model, which does not wait for it: tables do. Measurements that had it as an
    # `ancient` input were left out without a word by a run in which the check alone had to be made again
    priority: 1
    threads: 1
    resources:
        gpu=VLLM_GPU,
        mem_mb=memory("verify"),
        runtime=minutes("verify"),
    params:
        folder=lambda wildcards, input: Path(input.merged).parent,
        code=code_of_fit("verify"),
    message:
        "verify {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme verify {input.model:q} {input.cut:q}"
        " {input.transform:q} {params.folder:q} --threads {threads} --out {output:q} 2> {log:q}"
