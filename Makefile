# `make run` and `make test` work in a fresh clone: each first creates .venv and installs what it
# needs. Nothing is downloaded again until pyproject.toml changes.
#
#   make run PYTHON=/path/to/python3.11       with this interpreter (3.11 or newer)
#   make run SWEEPS=sweeps/gemm_shapes.yaml   other sweeps than the default ones
#   make test PYTEST_ARGS='-k units -x'       some of the tests
#
# pip takes its settings (index, cache, proxies) from its own configuration and environment.

# Everything below is relative to this directory, so that a path with spaces needs no care.
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALL := $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable

# The first interpreter that is new enough; only looked for when .venv has to be made.
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$candidate" && break; done)
CORES ?= all
SWEEPS ?=
PYTEST_ARGS ?=

# A shell that sets these would make the environment's Python load foreign packages, or compile
# all of DeepFlow again in each of a thousand jobs.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test lint docs format benchmark versions clean

help:
	@echo "make run        set up, run the example sweeps, say where tables and plots are"
	@echo "make test       set up, run the tests"
	@echo "make lint       set up, check style, types and workflow"
	@echo "make docs       set up, build the documentation in docs/_build"
	@echo "make format     rewrite Python and Snakemake files in the project's style"
	@echo "make benchmark  measure speed and overhead (several minutes)"
	@echo "make clean      remove the environment and caches (results/ stays)"

# Debian and Ubuntu ship a Python whose venv cannot install pip (no ensurepip): there, the
# system's pip puts one into the environment.
$(VENV)/environment.stamp:
	@if [ -z "$(PYTHON)" ]; then \
	echo "error: no Python 3.11 or newer found; try make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "Creating $(VENV) with $(PYTHON) ..."
	@if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; \
	then "$(PYTHON)" -m venv --clear $(VENV); \
	else "$(PYTHON)" -m venv --clear --without-pip $(VENV) \
	&& "$(PYTHON)" -m pip --python $(VENV_PYTHON) install --quiet pip; fi
	@touch $@

$(VENV)/run.stamp: pyproject.toml | $(VENV)/environment.stamp
	@echo "Installing DeepFlow and what it needs into $(VENV) ..."
	@$(INSTALL) .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/environment.stamp
	@echo "Installing DeepFlow and the development tools into $(VENV) ..."
	@$(INSTALL) '.[dev,browser]'
	@touch $(VENV)/run.stamp $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/environment.stamp
	@echo "Installing DeepFlow and what builds its documentation into $(VENV) ..."
	@$(INSTALL) '.[docs]'
	@touch $(VENV)/run.stamp $@

run: $(VENV)/run.stamp
	$(VENV_PYTHON) -m snakemake --cores $(CORES) all report $(if $(SWEEPS),--config sweeps="$(SWEEPS)")
	@echo
	@echo "Tables, plots and pages:"
	@find results \( -name points -o -name shards \) -prune -o \
	\( -name 'summary.*' -o -name '*.png' -o -name report.html \) -print | sort | sed 's/^/  /'

test: $(VENV)/dev.stamp
	$(VENV_PYTHON) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy deepflow
	$(VENV_PYTHON) -m snakefmt --check Snakefile rules
	$(VENV_PYTHON) -m snakemake --lint

docs: $(VENV)/docs.stamp
	$(VENV_PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

format: $(VENV)/dev.stamp
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .
	$(VENV_PYTHON) -m snakefmt Snakefile rules

benchmark: $(VENV)/run.stamp
	$(VENV_PYTHON) benchmarks/run.py

versions: $(VENV)/dev.stamp
	@$(VENV_PYTHON) --version
	@$(VENV_PYTHON) -c 'from importlib.metadata import version; \
	print(*(f"{name} {version(name)}" for name in ("deepflow", "snakemake", "numpy", "pandas", \
	"pyarrow", "seaborn", "pytest", "ruff", "mypy", "snakefmt")), sep="\n")'

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
