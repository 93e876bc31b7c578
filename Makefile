# Everything a user or a developer starts by hand; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: help install demo test check lint chaos cluster cluster-programs servers image locks clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

install: $(STAMP)  ## make .venv with the tested versions; nothing happens when it is up to date

# Named after what was installed: a change of either file installs again.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --constraint constraints.txt uv || echo "Without uv: by pip ..."
	@export VIRTUAL_ENV=$(CURDIR)/$(VENV) PATH="$$PATH:$(CURDIR)/$(BIN)" UV_COMPILE_BYTECODE=1; \
		$$(command -v uv || echo "$(BIN)/python -m") pip install --quiet \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

IMAGES ?=
demo: install  ## from images to a registered VAE and a verified latent store; IMAGES=DIR for yours
	@$(BIN)/python -m jobs.demo $(if $(IMAGES),--images "$(IMAGES)")

# A file's tests stay together; a worker has its own servers, and takes the long files first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# Where it is set, as containers do, each of a thousand processes would compile what it imports.
test check chaos: export PYTHONDONTWRITEBYTECODE =
test: lint  ## every check: lint, types, import rules, unit and integration tests
	$(BIN)/python -m pytest $(PARALLEL)

check: lint  ## the quick checks: lint, types, import rules, tests without servers and processes
	$(BIN)/python -m pytest $(PARALLEL) -m 'not chaos and not process and not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: install  ## the long fault tests; their results table is tests/chaos/README.md
	$(BIN)/python -m pytest -m chaos

cluster-programs: install  ## build a Kubernetes cluster's programs (root, Go; nothing cached: 8 minutes)
	$(BIN)/python -m tests.servers.cluster.programs

SHORT ?=
cluster: cluster-programs  ## the tests on a real Kubernetes cluster; SHORT=1: those of less than ten minutes
	$(BIN)/python -m pytest tests/cluster -m 'cluster$(if $(SHORT), and not slow)'

servers:  ## install the servers that some tests start (Debian packages, as root)
	bash tests/servers/install.sh

VARIANT ?= cpu
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:  ## build an image and run jobs.doctor in it; VARIANT=gpu: with CUDA, slim: without torch; RELEASE=1: of a base by digest alone
	VARIANT=$(VARIANT) VERSION=$(VERSION) RELEASE=$(RELEASE) bash tests/image/build.sh

locks: install  ## image/locks: what the images install, with hashes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python image/lock.py

clean:  ## remove the virtual environment and all caches, not ./runs
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
