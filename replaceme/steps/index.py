"""The commands: one file each, most of them one rule of the workflow each.

The module of a command has `arguments(parser)` and `run(args)`, which reads files, calls one function of the package
and writes files. ONLINE says whether the command may use the network (when its source is a Hub id).
"""

# each with what it does, in a line of a terminal; a module is imported when its command is asked for
GROUPS = {
    "shorten and measure a model": {
        "prune": "Shorten a model: calibrate, choose the cut, fit, save.",
        "heal": "Train a shortened model for a while.",
        "evaluate": "Run benchmarks on a model.",
        "generate": "Have a model answer the prompts of a text.",
        "divergence": "Measure how far a model predicts otherwise than its original.",
        "speed": "Measure the size, tokens per second and memory of a model.",
    },
    "check and report": {
        "check": "Check a config file, or write docs/config.md.",
        "preflight": "Find what would fail later: access, data, memory, disk.",
        "verify": "Check results, or a shortened model against its original.",
        "publish": "Copy tables and figures of a run to a folder of record.",
        "table": "Collect evaluations and speeds into a table.",
        "compare": "Show a table beside published values.",
        "cost": "Add up what the jobs behind each row of a table took.",
        "figure": "Draw a result, or a figure that config.yaml declares.",
        "provenance": "Show what a run was made from: models, texts, versions.",
    },
    "steps of the workflow, in its order": {
        "dequantise": "Write the plain weights of a quantised model.",
        "model": "Find a model and record what it is.",
        "tokens": "Turn a calibration text into token ids.",
        "mix": "Mix several calibrations into one.",
        "enough": "Keep as much of a calibration as is enough for fits.",
        "distances": "Measure how far the hidden states of blocks are apart.",
        "parts": "Measure what the parts of a model cost: operations, time, cache.",
        "candidates": "Measure what each possible cut costs.",
        "cut": "Choose which blocks are removed.",
        "gram": "Add up the Gram and cross matrices of a cut, over one shard.",
        "sum": "Add the statistics of all shards of a cut.",
        "recycle": "Choose MLP neurons that get other work.",
        "rows": "Write MLP outputs and targets, for the fits over rows.",
        "fit": "Find the transform of a cut.",
        "merge": "Fold a transform into a checkpoint and drop the blocks.",
    },
}
STEPS = {name: line for group in GROUPS.values() for name, line in group.items()}
