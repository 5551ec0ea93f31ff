# The project's commands. Each sets up what it needs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With SYSTEM=1 the interpreter that is there is used as it is, e.g. on a CUDA image without a network.
ifdef SYSTEM
RUN := $(PYTHON) -m
READY :=
export PYTHONPATH := $(CURDIR)
else
RUN := $(BIN)/python -m
READY := $(VENV)/.ready
# Other versions of Triton beside the pinned one: kernels must compile with each.
TRITONS := $(patsubst %,$(VENV)/triton/%/.ready,$(shell grep -v '^\#' tests/tritons.txt))
endif
WORKERS ?= 2

.PHONY: demo test rest check exhaustive mutants conformance lint ledger counters bounds gpu gpu-prepare results bench clean

# Trains a CNN on handwritten digits through the kernels and shows what it predicts.
demo: $(READY)
	$(RUN) cnn_triton.cli demo $(ARGS)

# The tests in minutes: a seeded cover of those that are alike, and all others. Another cover: make test SEED=1
# In a minute, the tests of an operator or of changed files: make test OP=max_pool2d, make test FILES="kernels/tiles/pick.py"
SEED ?= 0
COVER := 0.03
PYTEST = $(RUN) pytest -n $(WORKERS) --dist worksteal --seed $(SEED)
CHOICE = $(if $(OP)$(FILES),--most 250 $(OP:%=--operator=%) $(FILES:%=--touching=%),--cover $(COVER))
test: $(READY) $(TRITONS)
	$(PYTEST) $(CHOICE) $(ARGS)

# What `make test` leaves out, and both.
rest: $(READY) $(TRITONS)
	$(PYTEST) --rest $(COVER) $(ARGS)

check: $(READY) $(TRITONS)
	$(PYTEST) $(ARGS)

# Every case in every combination of dtype and memory format, for a night.
exhaustive: $(READY) $(TRITONS)
	$(PYTEST) --exhaustive $(ARGS)

# Faults put into the code, one at a time: do the tests find each?
mutants: $(READY) $(TRITONS)
	$(RUN) tests.mutants $(ARGS)

# PyTorch's own conformance data: every sample, error input and module, with a table of what passed.
conformance: $(READY)
	$(PYTEST) --exhaustive tests/test_conformance.py $(ARGS)

# Format, lint, and a strict type check.
lint: $(READY)
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy -p cnn_triton

# Compiles what the ledger of code quality doesn't know, and writes it anew. Figures that got worse need a REASON.
ledger: $(READY)
	$(RUN) bench.ledger write --workers $(WORKERS) --reason "$(REASON)"

# What the kernels do to memory, counted in the simulator: the raw file and docs/counters.md.
counters: $(READY)
	$(RUN) bench.counters --workers $(WORKERS)

# The least times of operators on an H200 by their compiled code, in two minutes, and the table of them. Other chips,
# dtypes and networks' layers: make bounds BOUNDS="--chips sm_80 --groups ResNet-50", or all of them: BOUNDS=
BOUNDS ?= --chips sm_90 --dtypes bfloat16 --groups operators
bounds: $(READY)
	$(RUN) bench.bounds count --workers $(WORKERS) $(BOUNDS)

# On a machine with a CUDA GPU, in nine minutes: tests and benchmarks, most valuable first, into one folder and archive.
# One part: PART=conv. Without a GPU, small: ARGS=--rehearse.
gpu: $(READY)
	$(RUN) bench.gpu $(if $(PART),--part $(PART)) $(ARGS)

# Before that, on a machine without the GPU: what it will launch, compiled and packed, for the Triton and the Python that
# the other machine has, e.g. those of PyTorch 2.11.
THERE_TRITON ?= 3.6.0
THERE_PYTHON ?= 3.12
HERE := $(VENV)/triton/$(THERE_TRITON)
gpu-prepare: $(READY) $(HERE)/.ready $(HERE)-python$(THERE_PYTHON)/.ready
	PYTHONPATH=$(HERE) $(RUN) bench.prepare --there $(HERE)-python$(THERE_PYTHON) $(ARGS)

# The table of docs/results.md, and the plots, from the raw files in bench/results/.
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

WHEEL := --only-binary=:all: --implementation cp --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64
$(HERE)-python$(THERE_PYTHON)/.ready: $(READY)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade $(WHEEL) --python-version $(THERE_PYTHON) \
	    --target $(@D) triton==$(THERE_TRITON)
	touch $@

$(VENV)/triton/%/.ready: $(READY)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(@D) triton==$*
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
