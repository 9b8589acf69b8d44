# Two commands: `make run` (config.yaml to tables) and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY := $(VENV)/.ready
EXPORTS := $(VENV)/exports
# where it is set, each of hundreds of processes would compile the package anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run publish test lint install gpu-test slurm slurm-packages exports chaos docs clean

run: $(READY)
	snakemake --cores all
	snakemake --report results/report.html --quiet all
	@cat results/tables/*.md
	@echo "Report: $(CURDIR)/results/report.html"

# the linters run while the workers of pytest start, and say what they found after it
test: $(READY)
	@found=$$(mktemp) && { $(MAKE) --no-print-directory lint > $$found 2>&1 & } && linters=$$! && tests=0; \
	pytest -n 2 --dist loadfile --no-loadscope-reorder || tests=$$?; \
	lint=0; wait $$linters || lint=$$?; cat $$found; rm $$found; exit $$((lint ? lint : tests))

lint: $(READY)
	ruff format --check .
	ruff check .
	snakefmt --check Snakefile rules
	snakemake --lint

gpu-test: $(READY)
	pytest -m gpu

# the workflow on a one-node Slurm of this machine's own; not within `make test`, whose work would slow it down
slurm: slurm-packages $(READY)
	python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	timeout -k 30 900 pytest -m 'not gpu' --durations=5 tests/cluster

slurm-packages:
	@which slurmctld slurmd munged sbatch > /dev/null \
	|| timeout -k 10 180 sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge' > /dev/null 2>&1 \
	|| echo "no Slurm: slurm-wlm and munge cannot be installed here (apt-get, as root), so its test is skipped"

# other programs than transformers on a shortened model; VLLM_PYTHON and LLAMA_CPP name two more (docs/method/exports.md)
exports: $(EXPORTS)
	@export PYTHONPATH=$(CURDIR)/$(EXPORTS); \
	if test -d $(EXPORTS); then python -c 'import ctranslate2, mlx_lm, onnx, onnxruntime, onnxscript' || exit; fi; \
	timeout -k 30 900 pytest -rs -k real_program tests/exports

# in a folder of their own: with some of them in .venv transformers may do other things, and `make test` does more
$(EXPORTS): requirements-exports.txt | $(READY)
	@rm -rf $@ $@.part
	@timeout -k 10 180 python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part -r $< \
	&& mv $@.part $@ && touch $@ \
	|| echo "no other programs: requirements-exports.txt cannot be installed here, so their tests are skipped"

# hundreds of kills and faults, 20 minutes at most
chaos: $(READY)
	out=$$(mktemp -u) && timeout -k 30 1200 pytest -m chaos -n 2 --dist loadfile tests/chaos --chaos-out $$out \
	&& mv $$out benchmarks/results/chaos.json

docs: $(READY)
	replaceme check --docs docs/config.md

install: $(READY)

$(READY): requirements.txt requirements-bare.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements-bare.txt --editable .
	@touch $@

clean:
	git clean -fdXq results .snakemake

# every table and figure that config.yaml and what it includes define, and the provenance of all
publish: run
	snakemake --cores all --config default=null
	replaceme publish results --out results/published --command "make publish" --readme README.md
