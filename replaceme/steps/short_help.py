"""Lines of short help for the options of config sections, and examples of commands.

`--help-all` shows every other option, with the schema's own words.
"""

# by section and field; the help adds choices and defaults
SHORT = {
    "ModelConfig": {"dequantise": "Unpack a quantised source first (FP8, GPTQ, AWQ, GGUF and others)."},
    "CalibrationConfig": {
        "dataset": "Text to fit on: a .txt, .jsonl or .parquet file, a Hub data set, or `micro`.",
        "images": "For encoders of images: a folder or a Hub data set.",
        "samples": "How many sequences, or images; auto: as many as are enough.",
        "tokens": "Length of a sequence.",
    },
    "GenerationConfig": {"new_tokens": "Most tokens of an answer."},
    "CutConfig": {
        "blocks": "Blocks to remove.",
        "ratio": "Or the share of the model to remove.",
        "metric": "What the choice of the blocks minimises.",
    },
    "FitConfig": {
        "transform": "Structure of the map; identity: none, the blocks are dropped.",
        "objective": "What the fit minimises.",
        "placement": "Where the map goes.",
        "recycle": "With placement down_proj: the share of the MLP's neurons that pass on linear features.",
        "ridge_relative": "Ridge, in units of the Gram's mean diagonal.",
    },
    "TrainingConfig": {
        "train": "What is trained.",
        "steps": "Steps of the optimiser.",
        "learning_rate": "Highest learning rate.",
        "batch_size": "Sequences per pass.",
        "accumulation": "Passes per step.",
        "warmup": "First steps, over which the learning rate rises.",
        "lora_rank": "Rank of the adapters of `--train lora`.",
        "held_out": "Last sequences, on which the loss is measured.",
    },
}

PRUNE = (
    "replaceme prune resources/micro --dataset micro --samples 64 --tokens 256 \\",
    "  --blocks 6 --out shorter",
)
EXAMPLES = {
    "replaceme": (
        *PRUNE,
        "replaceme evaluate shorter --include resources/tasks \\",
        "  --tasks micro_who,micro_where --out scores.json",
    ),
    "prune": (
        *PRUNE,
        "# the fit `recommended` of config.yaml, ahead on real models, which",
        "# a GPU takes unasked",
        "replaceme prune MODEL --dataset notes.txt --blocks 7 --metric kl \\",
        "  --objective kl --placement down_proj --weighting inverse_energy \\",
        "  --ridge-relative 0.001 --out shorter",
    ),
    "evaluate": (
        "replaceme evaluate shorter --tasks piqa,winogrande --num-fewshot 5 \\",
        "  --out scores.json",
    ),
    "heal": (
        "replaceme tokens MODEL --dataset notes.txt --out tokens.safetensors",
        "replaceme heal shorter tokens.safetensors --train lora --steps 200 \\",
        "  --learning-rate 1e-4 --out healed",
    ),
}
