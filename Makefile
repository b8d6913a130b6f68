# `make quickstart` and `make test` each do everything on a machine with git, make and CPython >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# Compiled XLA programs are kept between runs of these targets.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/xla

.PHONY: venv quickstart openmoji test test-all test-hf lint golden clean

venv: .venv/installed

# --use-pep517: one package (promise, of TFDS) has no wheel, and pip warns of its older way to build.
# A second call installs nothing: the stamp is newer than what it was made from.
.venv/installed: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmjax needs CPython 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

out/data/openmoji/tokenizer.json: | venv
	$(BIN)/mmjax data build --src=openmoji --dst=out/data/openmoji

# `make quickstart FAST=1` takes a quarter of the steps, into a workdir of its own.
quickstart: venv out/data/openmoji/tokenizer.json
	$(BIN)/mmjax train --config=experiments/quickstart.py --workdir=out/quickstart$(if $(FAST),_fast --config.steps=500)

openmoji: venv out/data/openmoji/tokenizer.json
	$(BIN)/mmjax train --config=experiments/openmoji.py --workdir=out/openmoji

# Two processes, each a file of tests at a time: XLA compiles most of a program on one core.
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 -m "not slow and not hf"

test-all: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 -m "not hf"

# Torch beside us, on new weights: installs the extra first.
test-hf: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[hf]"
	$(BIN)/python -m pytest --durations=10 -m hf

# Rewrites the text snapshots of every experiment; read the diff before committing it.
golden: venv
	$(BIN)/python -m pytest tests/test_experiments.py --update-golden

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf out .cache
