# Needs Linux on x86-64, Python 3.11 or later, git and make; everything else is installed into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint types hooks mutants warm-start metrics config-docs panels requirements clean

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
BIN := .venv/bin
ROOMS := policy transport actors learner rewards shapes recipe report serving evaluation cluster deploy benchmarks
UV := $(BIN)/uv
UV_VERSION := 0.13.9

# A CPU build of torch comes from the wheels that pip is told of, or else from PyTorch's own index.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else
export UV_TORCH_BACKEND := cpu
endif
export UV_HTTP_TIMEOUT := 300

help:
	@echo "make demo        set up, then train the laptop-sized run (about ten minutes on two cores)"
	@echo "make test        set up, then lint, types, import contracts and all tests (about 20 minutes on two cores)"
	@echo "make test-fast   the quick tests of the rooms' cores (under 3 minutes; no Ray, no vLLM, no browser)"
	@echo "make setup       install the pinned CPU environment into .venv"
	@echo "make hooks       run the linters before every commit (pre-commit)"
	@echo "make mutants     try small changes of the cores (SEED=0 COUNT=100), and show those that no unit test notices"
	@echo "make warm-start  make shapes/checkpoint again (about half an hour)"
	@echo "make metrics     make docs/metrics.md and the Grafana dashboards again"
	@echo "make config-docs make docs/config.md again"
	@echo "make panels      make docs/panels again, from a run that a Prometheus watches (about ten minutes)"
	@echo "make requirements  resolve requirements/cpu.txt and requirements/gpu.txt again"

setup: .venv/.installed

.venv/.installed: requirements/cpu.txt pyproject.toml
	@test "$$(uname -s) $$(uname -m)" = "Linux x86_64" || { echo "bicot needs Linux on x86-64, for which vLLM is \
	built; this is $$(uname -s) on $$(uname -m). On Windows use WSL 2; elsewhere a container of deploy/docker on an x86-64 \
	machine."; exit 1; }
	@test -n "$(PYTHON)" || { echo "bicot needs Python 3.11 or later with venv, as python3 or python3.11"; exit 1; }
	@echo "Installing the pinned environment into .venv ..."
	@test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --quiet uv==$(UV_VERSION); }
	@$(UV) pip install --quiet --python $(BIN)/python -r requirements/cpu.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup
	@$(BIN)/bicot train deploy/runs/shapes.yaml --fresh folder=runs/demo

LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && \
  $(BIN)/mypy $(ROOMS) && $(BIN)/lint-imports --no-logo
# Two processes; all tests of a file go to one of them. In make test lint runs beside them, and ends long before them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	@{ $(LINT); } & lint=$$!; $(PYTEST); tests=$$?; \
	  wait $$lint || { echo "lint failed: its complaints stand above those of the tests"; exit 1; }; exit $$tests

test-fast: setup
	@$(PYTEST) tests/unit -m "not slow"

lint: setup
	@$(LINT)

types: setup
	@$(BIN)/mypy $(ROOMS)

hooks: setup
	@$(BIN)/pre-commit install

SEED := 0
COUNT := 100
mutants: setup
	@$(BIN)/python tests/support/mutants.py --seed $(SEED) --count $(COUNT)

warm-start: setup
	@$(BIN)/python -m shapes.warm_start --out shapes/checkpoint

metrics: setup
	@$(BIN)/python -m cluster.monitor.catalogue > docs/metrics.md
	@$(BIN)/python -m deploy.grafana.build

config-docs: setup
	@$(BIN)/python -m recipe.key_docs > docs/config.md

panels: setup
	@deploy/prometheus/install.sh .venv/prometheus
	@PYTHONPATH=.:tests/support $(BIN)/python -m draw_panels docs/panels

COMPILE = $(UV) pip compile pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-header --no-annotate --quiet
requirements: setup
	@$(COMPILE) --extra cpu --output-file requirements/cpu.txt
	@env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(COMPILE) --extra gpu --output-file requirements/gpu.txt

clean:
	rm -rf .venv build *.egg-info
