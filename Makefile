# make train · make test · make test-all · make lint · make bench · make results · make clean
PYTHON ?= python3
VENV ?= .venv
EXPERIMENT ?= cnn
CONFIG ?= digits
FLAGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: setup train test test-all lint bench results clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

train: setup
	$(BIN)/python -m experiments.$(EXPERIMENT) --config=$(CONFIG) $(FLAGS)

lint: setup
	$(BIN)/ruff check .

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests

test-all: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'slow or not slow' tests

bench: setup
	$(BIN)/python -m benchmarks.loop

results: setup
	$(BIN)/python -m benchmarks.results

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
