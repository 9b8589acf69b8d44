"""The steps of the workflow: one file, one subcommand and one rule each.

A step module has `arguments(parser)` and `run(args)`, which reads files, calls one function of the package and writes
files. ONLINE says whether the step may use the network (when its source is a Hub id).
"""

# in the order of the workflow, with what each does; a module is imported when its step is asked for
STEPS = {
    "model": "Resolve a local folder or a Hub id; record commit, file hashes and sizes in model.json.",
    "tokens": "Turn a calibration source into token ids and mask (tokens.safetensors).",
    "generate": "Have the model answer the prompts of a calibration source (.jsonl).",
    "mix": "Mix calibrations, by weight, into one (tokens.safetensors).",
    "distances": "Measure cosine and angular distances of all pairs of blocks (.safetensors and .csv).",
    "candidates": "Measure every candidate cut on a token subset, after its own fit or without one (candidates.json).",
    "cut": "Choose the cut by the configured metric and list every candidate (cut.json).",
    "gram": "Accumulate the Gram and cross matrices of a cut over one shard of the calibration tokens.",
    "sum": "Add the statistics of all shards of a cut.",
    "recycle": "Choose the neurons of the carrier's MLP that are given linear features to pass on.",
    "rows": "Write the MLP outputs and targets of a cut, token by token, for the fits over rows.",
    "fit": "Find the transform of a cut from its statistics (transform.safetensors and fit.json).",
    "merge": "Fold a transform into the checkpoint and drop the blocks of the cut.",
    "verify": "Check that results are as recorded; or a merged checkpoint against the original (verify.json).",
    "heal": "Train a merged checkpoint for a while: its transform, adapters or all weights (and healing.json).",
    "evaluate": "Run benchmarks on a model (evaluation.json).",
    "speed": "Measure parameters, file size, prefill and decode tokens/s and peak memory (speed.json).",
    "table": "Collect evaluations and speeds into a table (.csv, .md, .html, .tex).",
    "compare": "Show a table beside published values, in their layout (.csv, .md, .html, .tex).",
    "cost": "Add up what the jobs behind each row of a table took (.csv, .md, .html, .tex).",
    "figure": "Draw distances, the choice of a cut, a healing, a table, or what config.yaml declares (.svg or .png).",
    "provenance": "Show what a run was made from and with: models, texts, versions, machines (.html and .md).",
    "prune": "Shorten a model in one go: calibrate, choose the cut, fit, fold and save.",
    "publish": "Copy the tables and figures of a finished run to a folder of record.",
    "preflight": "Find what would fail later: access, columns, tasks, packages, memory, disk.",
    "check": "Check a config file without running anything, or write docs/config.md.",
}
