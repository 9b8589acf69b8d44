"""The names of programs that shortened models are tried with (`exports.registry` has what each needs)."""

PROGRAMS = ("ctranslate2", "llama.cpp", "mlx", "onnx", "vllm")
COLUMN = "export_"  # before the name of a program, the name of its column in a table
