# make train · make test · make test-all · make test-aot · make faults · make smoke · make lint · make bench · make results · make clean
PYTHON ?= python3
VENV ?= .venv
EXPERIMENT ?= gan
CONFIG ?= digits
FLAGS ?=
JOBS ?= 2

BIN := $(VENV)/bin

.PHONY: setup train test test-all test-aot faults smoke lint bench results clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard research/kernels/native/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	JAX_PLATFORMS=cpu $(BIN)/python -m research.kernels.native.build
	touch $@

train: setup
	$(BIN)/python -m experiments.$(EXPERIMENT) --config=$(CONFIG) $(FLAGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(wildcard research/kernels/native/src/*) tests/research/kernels/native_check.cc

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests

test-all: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not readme and not aot' tests

test-aot: $(VENV)-aot/.installed
	$(VENV)-aot/bin/python -m pytest -n $(JOBS) -m aot tests/aot

# An environment of its own: where libtpu and a CUDA plugin are installed, every program looks for their devices first.
$(VENV)-aot/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-aot
	$(VENV)-aot/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,aot]'
	touch $@

# Half an hour on two cores: thirty kills of each family, and every other fault with its slow instances.
faults: setup
	$(BIN)/python -m tests.faults.campaign --kills=30 --jobs=$(JOBS) --report=docs/studies/faults/README.md
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'slow or not slow' tests/faults tests/experiments/test_hosts.py \
	  tests/experiments/test_bad_numbers.py tests/experiments/test_resume.py tests/experiments/test_allow_change.py \
	  tests/experiments/test_examples.py tests/experiments/test_free_flags.py tests/experiments/test_same_bits.py \
	  tests/research/test_checkpoint_damage.py tests/research/test_checkpoint_room.py tests/research/test_signals.py \
	  tests/research/data/test_exactly_once.py tests/research/test_goodput.py

smoke: setup
	$(BIN)/python -m pytest -n $(JOBS) -m readme tests/test_readme.py

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.updates --write
	$(BIN)/python -m benchmarks.kernels --write
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.gpu --smoke
	$(BIN)/python -m benchmarks.interchange
	$(BIN)/python -m benchmarks.exported

results: setup
	$(BIN)/python -m benchmarks.results

clean:
	rm -rf $(VENV) $(VENV)-aot build research/kernels/native/build *.egg-info .pytest_cache .ruff_cache
