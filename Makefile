# The project's commands. Each sets up what it needs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With SYSTEM=1 the interpreter that is there is used as it is, e.g. on a CUDA image without a network.
ifdef SYSTEM
RUN := $(PYTHON) -m
READY :=
else
RUN := $(BIN)/python -m
READY := $(VENV)/.ready
# The oldest supported Triton, beside the pinned one: kernels must compile as well with it.
OLDEST := $(VENV)/oldest/.ready
endif
WORKERS ?= 2

.PHONY: demo test check conformance lint ledger gpu results bench clean

# Trains a CNN on handwritten digits through the kernels and shows what it predicts.
demo: $(READY)
	$(RUN) cnn_triton.cli demo $(ARGS)

# A seeded cover of the tests, in minutes. Another seed: make test SEED=1
SEED ?= 0
test: $(READY) $(OLDEST)
	$(RUN) pytest -n $(WORKERS) --dist worksteal --cover 0.03 --cover-seed $(SEED) $(ARGS)

# Every test.
check: $(READY) $(OLDEST)
	$(RUN) pytest -n $(WORKERS) --dist worksteal $(ARGS)

# PyTorch's own conformance data: every sample, error input and module, with a table of what passed.
conformance: $(READY)
	$(RUN) pytest -n $(WORKERS) --dist worksteal tests/test_conformance.py $(ARGS)

# Format, lint, and a strict type check of the package as installed.
lint: $(READY)
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	rm -rf build/typed && $(RUN) pip install -q --no-deps --no-build-isolation --target build/typed .
	cd build/typed && $(CURDIR)/$(BIN)/python -m mypy --config-file $(CURDIR)/pyproject.toml -p cnn_triton

# Compiles what the ledger of code quality doesn't know, and writes it anew. Figures that got worse need a REASON.
ledger: $(READY) $(OLDEST)
	$(RUN) bench.ledger write --workers $(WORKERS) --reason "$(REASON)"

# On a machine with a CUDA GPU: the tests natively, then the benchmarks; everything into one folder. One part: PART=conv
gpu: $(READY)
	$(RUN) bench.gpu $(if $(PART),--part $(PART)) $(ARGS)

# The README's table of results, and the plots, from the raw files in bench/results/.
results: $(READY)
	$(RUN) bench.publish

# The interpreter's time for the demo's shapes, or on a GPU every operator against PyTorch.
bench: $(READY)
	$(RUN) pytest bench --benchmark-only $(ARGS)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel torch
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[cli,test,lint]'
	touch $@

$(VENV)/oldest/.ready: $(READY)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(@D) triton==3.6.0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
