rule preflight:
    """Find what would fail later for want of access, memory, disk, tasks or packages; part of no other target."""
    log:
        "results/logs/preflight.log",
    localrule: True
    params:
        # of a function, as braces in it would be taken for wildcards
        config=lambda wildcards: CONFIG.model_dump_json(exclude_unset=True),
    message:
        "preflight"
    shell:
        "printf %s {params.config:q} | replaceme preflight - 2>&1 | tee {log:q}"
