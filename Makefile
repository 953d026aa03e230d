# Two commands matter: `make run` and `make test`. Both need git, make and Python 3.11 to 3.13.

PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTEST := $(BIN)/python -m pytest
NAME ?= cohort
EXPERIMENTS := ablation rates time_to_target decoders priors small_data tokenizers temperature \
	memorisation realism sampling image_sizes speed backends

# TensorFlow's start-up chatter would stand above the first output of every notebook.
export TF_CPP_MIN_LOG_LEVEL := 3

# Values from the command line are taken as they are: neither make nor a shell runs what they hold.
# Recipes read them from the environment. `origin` is asked first, because `override` changes it.
export PYTHON NAME EXPERIMENTS
NAMED := $(if $(filter-out file,$(origin PYTHON)),--named)
as_text = $(eval override $1 := $(or $2,$$(value $1)))$(eval export $1)
$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),\
	$(call as_text,$(name))))

# Notebooks run in their own folder, so relative folders are made absolute.
$(foreach name,OASIS_DATA_DIR OASIS_CACHE_DIR OASIS_MY_WEIGHTS,\
	$(if $(filter-out /% ~%,$(firstword $(value $(name)))),\
	$(call as_text,$(name),$$(CURDIR)/$$(value $(name)))))

# Settings of other projects stay out: `~/.keras/keras.json`, and a backend that shows no figures.
export KERAS_HOME := $(CURDIR)/build/keras
unexport MPLBACKEND

.PHONY: run lab test test-unit test-notebooks test-integration test-long test-unpinned browse lint book \
	pages slides train score experiments results refresh licences doctor lock environment environment-dev
.NOTPARALLEL:

# ------------------------------------------------------------------------------ for everybody

run: environment
	$(BIN)/python -m oasis_helpers run

lab: environment
	$(BIN)/python -m oasis_helpers lab

doctor: environment
	$(BIN)/python -m oasis_helpers doctor

# --------------------------------------------------------------------------------------- tests

test: test-unit test-notebooks test-integration

# For two cores: one thread a worker, and a third worker where kernels and processes wait.
WORKERS := TF_NUM_INTRAOP_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PYTEST) -n

# The package: no training above a second, no kernels.
test-unit: environment-dev
	$(WORKERS) 2 --dist worksteal tests/unit

# Every cell of every notebook, its output compared with the stored one.
test-notebooks: environment-dev
	$(WORKERS) 3 --dist loadfile --nbval notebooks

# Processes, kills, backends, pages.
test-integration: environment-dev
	$(WORKERS) 3 --dist loadfile tests/integration

# Twenty kills of a training, ten thousand maps, two of everything at once.
test-long: environment-dev
	$(PYTEST) -m long tests

# The newest packages that pyproject.toml allows, in an environment of their own.
UNPINNED := $(subst .venv,build/unpinned,$(BIN))/python
test-unpinned:
	"$$PYTHON" -m venv --clear build/unpinned
	$(UNPINNED) -m pip install --quiet --editable ".[notebooks,test]"
	$(UNPINNED) -m pytest -n 2 --dist worksteal tests/unit
	$(UNPINNED) -m pytest -n 2 --dist loadfile --nbval notebooks

# Pages, JupyterLab and the code painter in a headless Chromium.
browse: environment-dev
	$(PYTEST) -m browser tests

# Rules, layout, docstrings, spelling and sizes of everything that git tracks.
lint: environment-dev
	$(BIN)/pre-commit run --all-files

# ----------------------------------------------------------------------------- for maintainers

# A fresh read each time takes seconds, and leaves no page of a notebook that has gone.
book: environment-dev
	rm -rf build/book build/jupyter_execute
	$(BIN)/python -m sphinx --quiet --fail-on-warning -c book . build/book
	@echo "open build/book/index.html"

# The same pages of the notebooks that the last `make run` executed.
pages: environment-dev
	rm -rf build/pages build/jupyter_execute
	$(BIN)/python -m sphinx --quiet -c book -D executed_notebooks=build/notebooks . build/pages
	@echo "open build/pages/index.html"

# One page of slides for each notebook: its figures, each with a sentence, some with a question.
slides: environment
	$(BIN)/python -m tools.slides

train: environment
	$(BIN)/python -m tools.train "$$NAME"

score: environment
	$(BIN)/python -m tools.score "$$NAME"

experiments: environment-dev
	set -e; for name in $$EXPERIMENTS; do $(BIN)/python -m experiments "$$name"; done

# Tables of README and docs/results.md and the pictures, from the scores of the weights.
results: environment
	$(BIN)/python -m tools.tables

# Stored outputs of the notebooks, from a run on the cohort.
refresh: environment
	$(BIN)/python -m tools.notebooks refresh

licences: environment-dev
	$(BIN)/pip-licenses --with-system --packages $$(sed -n 's/==.*//p' requirements.lock)

# ----------------------------------------------------------------------------------- packages

# Made again where the checkout was moved or copied, or its lock or the named PYTHON changed.
environment:
	@"$$PYTHON" tools/install.py $(NAMED) requirements.lock

# Tests, pages and linters need more than a student does.
environment-dev:
	@"$$PYTHON" tools/install.py $(NAMED) requirements-dev.lock

# Write no registry's address into the files. The second lock holds everything of the first.
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet

lock: environment-dev
	$(LOCK) --extra notebooks -o requirements.lock
	$(LOCK) --extra notebooks --extra test --extra docs --extra dev \
		--constraints requirements.lock -o requirements-dev.lock
