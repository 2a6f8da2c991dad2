# `make help` lists what there is. Everything here needs only make and Python 3.11 or newer.
# The targets set up what they need by themselves, in .venv; no database and no Redis is expected.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# In memory, where it has room, a test's database is there in 20 ms; on a slow disk it takes 400.
MEMORY := $(shell test -w /dev/shm && \
  test "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 4000000 2>/dev/null && echo /dev/shm)
# Tests start hundreds of interpreters, which take a third longer where each compiles the library
# anew, as PYTHONDONTWRITEBYTECODE makes them; the bytecode goes where it is in nobody's way.
BYTECODE := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/$(VENV)/bytecode
FAST := $(BYTECODE) $(if $(MEMORY),TMPDIR=$${TMPDIR:-$(MEMORY)})

.DEFAULT_GOAL := help
.PHONY: help demo test torture check audit format docs bench build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Run a grocer's data through all six patterns (ARGS="--weeks 8")
	@$(BIN)/datapatterns demo $(ARGS)

test: $(VENV)/.dev ## Run the everyday suite on embedded servers, or on DATABASE_URL and REDIS_URL
	@$(FAST) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

torture: $(VENV)/.dev ## Run properties and interleavings far more thoroughly, and all that breaks servers
	@$(FAST) HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-nightly} \
	  DATAPATTERNS_TORTURE_EVENTS=$${DATAPATTERNS_TORTURE_EVENTS:-1000000} $(BIN)/python -m pytest \
	  -n $(WORKERS) --dist loadfile --timeout 3600 tests/property tests/interleavings tests/chaos tests/integration/test_dogpile_backend.py $(ARGS)

check: $(VENV)/.dev ## Lint, types and layer contracts
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: $(VENV)/.dev ## Ask the package index of known vulnerabilities (fails if it cannot tell)
	@$(BIN)/python .ci/audit.py $(ARGS)

format: $(VENV)/.dev ## Rewrite the code as the formatter wants it
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(VENV)/.dev ## Run every code block of the documentation
	@$(FAST) $(BIN)/python -m pytest docs README.md $(ARGS)

bench: $(VENV)/.bench ## Run the benchmarks, side by side with the rivals (ARGS="events")
	@$(BIN)/python -m benchmarks $(ARGS)

build: $(VENV)/.dev ## Build the wheel and the source distribution
	@$(BIN)/python -m build --outdir dist

clean: ## Remove what these targets made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# --- set-up: a stamp for each extra, renewed when pyproject.toml changes ---------------------

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }

$(VENV)/.demo $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/pyvenv.cfg pyproject.toml
	@echo "Installing datapatterns[$*] into $(VENV) (once; a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS_$*)]"
	@touch $@

EXTRAS_demo := demo,fast
EXTRAS_dev := dev
EXTRAS_bench := dev,bench
