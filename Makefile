# Two commands matter: `make run` and `make test`. Both need git, make and Python 3.11 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
NAME ?= cohort
EXPERIMENTS := ablation rates time_to_target decoders priors tokenizers temperature sampling image_sizes speed
	image_sizes speed

# TensorFlow's start-up chatter would stand above the first output of every notebook.
export TF_CPP_MIN_LOG_LEVEL := 3

# Notebooks run in their own folder, so a relative data folder is made absolute here.
ifdef OASIS_DATA_DIR
export override OASIS_DATA_DIR := $(if $(filter /%,$(firstword $(OASIS_DATA_DIR))),,$(CURDIR)/)$(OASIS_DATA_DIR)
endif

.PHONY: run lab test test-unit test-notebooks test-integration test-long browse lint book \
	train score experiments results refresh licences doctor lock
.NOTPARALLEL:

# ------------------------------------------------------------------------------ for everybody

run: $(VENV)/ready
	$(BIN)/python -m oasis_helpers run

lab: $(VENV)/ready
	$(BIN)/jupyter lab notebooks

doctor: $(VENV)/ready
	$(BIN)/python -m oasis_helpers doctor

# --------------------------------------------------------------------------------------- tests

test: test-unit test-notebooks test-integration

# The package: no training above a second, no kernels. Two workers, one thread each.
test-unit: $(VENV)/ready-dev
	TF_NUM_INTRAOP_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal tests/unit

# Every cell of every notebook, its output compared with the stored one; two kernels at once.
test-notebooks: $(VENV)/ready-dev
	$(PYTEST) -n 2 --dist loadfile --nbval notebooks

# Processes, kills, backends, pages.
test-integration: $(VENV)/ready-dev
	$(PYTEST) tests/integration

# Twenty kills of a training, ten thousand maps, two of everything at once.
test-long: $(VENV)/ready-dev
	$(PYTEST) -m long tests

# Pages, JupyterLab and the code painter in a headless Chromium.
browse: $(VENV)/ready-dev
	$(PYTEST) -m browser tests

# Rules, layout, docstrings, spelling and sizes of everything that git tracks.
lint: $(VENV)/ready-dev
	$(BIN)/pre-commit run --all-files

# ----------------------------------------------------------------------------- for maintainers

# A fresh read each time takes seconds, and leaves no page of a notebook that has gone.
book: $(VENV)/ready-dev
	rm -rf build/book build/jupyter_execute
	$(BIN)/python -m sphinx --quiet --fail-on-warning -c book . build/book
	@echo "open build/book/index.html"

train: $(VENV)/ready
	$(BIN)/python -m tools.train $(NAME)

score: $(VENV)/ready
	$(BIN)/python -m tools.score $(NAME)

experiments: $(VENV)/ready-dev
	set -e; for name in $(EXPERIMENTS); do $(BIN)/python -m experiments $$name; done

# README's tables and picture, from the scores of the weights.
results: $(VENV)/ready
	$(BIN)/python -m tools.tables

# Stored outputs of the notebooks, from a run on the cohort.
refresh: $(VENV)/ready
	$(BIN)/python -m tools.notebooks refresh

licences: $(VENV)/ready-dev
	$(BIN)/pip-licenses --with-system --packages $$(sed -n 's/==.*//p' requirements.lock)

# ----------------------------------------------------------------------------------- packages

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Tests, pages and linters need more than a student does.
$(VENV)/ready-dev: $(VENV)/ready requirements-dev.lock
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

# Write no registry's address into the files. The second lock holds everything of the first.
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet

lock: $(VENV)/ready-dev
	$(LOCK) --extra notebooks -o requirements.lock
	$(LOCK) --extra notebooks --extra test --extra docs --extra dev \
		--constraints requirements.lock -o requirements-dev.lock
