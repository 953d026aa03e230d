# Two commands matter: `make run` and `make test`. Both need git, make and Python 3.11 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?= cohort

# TensorFlow's start-up chatter would stand above the first output of every notebook.
export TF_CPP_MIN_LOG_LEVEL := 3

# Notebooks run in their own folder, so a relative data folder is made absolute here.
ifdef OASIS_DATA_DIR
export override OASIS_DATA_DIR := $(if $(filter /%,$(firstword $(OASIS_DATA_DIR))),,$(CURDIR)/)$(OASIS_DATA_DIR)
endif

.PHONY: run test test-long check browse book lab train score ladder bench results refresh lock

run: $(VENV)/ready
	$(BIN)/python -m oasis_helpers run

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest

# Rules, layout, docstrings, spelling and sizes of everything that git tracks.
check: $(VENV)/ready-dev
	$(BIN)/pre-commit run --all-files

# Twenty kills of a training, ten thousand maps, two of everything at once.
test-long: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m long tests

lab: $(VENV)/ready
	$(BIN)/jupyter lab notebooks

# A fresh read each time takes seconds, and leaves no page of a notebook that has gone.
book: $(VENV)/ready-dev
	rm -rf build/book build/jupyter_execute
	$(BIN)/python -m sphinx --quiet --fail-on-warning -c book . build/book
	@echo "open build/book/index.html"

browse: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m browser tests

train: $(VENV)/ready
	$(BIN)/python -m oasis_helpers train $(NAME)

score: $(VENV)/ready
	$(BIN)/python -m oasis_helpers score $(NAME)

ladder: $(VENV)/ready
	$(BIN)/python -m oasis_helpers ladder ablation
	$(BIN)/python -m oasis_helpers ladder rates
	$(BIN)/python -m oasis_helpers ladder race
	$(BIN)/python -m oasis_helpers ladder decoders
	$(BIN)/python -m oasis_helpers ladder priors
	$(BIN)/python -m oasis_helpers ladder tokenizers
	$(BIN)/python -m oasis_helpers ladder temperature
	$(BIN)/python -m oasis_helpers ladder sampling
	$(BIN)/python -m oasis_helpers ladder sizes

bench: $(VENV)/ready
	$(BIN)/python -m oasis_helpers bench

results: $(VENV)/ready
	$(BIN)/python -m oasis_helpers results

refresh: $(VENV)/ready
	$(BIN)/python -m oasis_helpers refresh

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
	$(LOCK) -o requirements.lock
	$(LOCK) --extra dev --constraints requirements.lock -o requirements-dev.lock
