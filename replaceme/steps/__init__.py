"""The steps of the workflow: one file, one subcommand and one rule each.

A step module has HELP (a sentence), `arguments(parser)`, and `run(args)`, which reads files, calls one function of the
package and writes files. ONLINE says whether the step may use the network (when its source is a Hub id).
"""

# in the order of the workflow
STEPS = (
    "model",
    "tokens",
    "distances",
    "candidates",
    "cut",
    "gram",
    "sum",
    "fit",
    "merge",
    "evaluate",
    "speed",
    "table",
    "figure",
    "prune",
    "publish",
    "check",
)
