# Everything a user or a developer starts by hand; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: help install demo test chaos servers image clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

install: $(STAMP)  ## make .venv with the tested versions; nothing happens when it is up to date

# Named after what was installed: a change of either file installs again.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about a minute) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

IMAGES ?=
demo: install  ## from images to a registered VAE and a verified latent store; IMAGES=DIR for yours
	@$(BIN)/python -m jobs.demo $(if $(IMAGES),--images "$(IMAGES)")

test: install  ## every check: lint, types, import rules, unit and integration tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

chaos: install  ## the long fault tests; their results table is tests/chaos/README.md
	$(BIN)/python -m pytest -m chaos tests/chaos tests/integration

servers:  ## install the servers that some tests start (Debian packages, as root)
	bash tests/servers/install.sh

VARIANT ?= cpu
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:  ## build the image of all jobs and run jobs.doctor in it; VARIANT=gpu: with CUDA
	VARIANT=$(VARIANT) VERSION=$(VERSION) bash tests/image/build.sh

clean:  ## remove the virtual environment and all caches, not ./runs
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
