# make demo, make test, make docs: each works alone in a fresh clone, on a machine that has Python >= 3.11 and make.
# make quick tests the mathematics only, make quick QUICK=tests/test_race.py what is named.
# make test PYTHON=python3.13 tests with another Python; PEERS=1 adds the cross-checks against torch and the others.
# OLDEST=1 works in an environment of its own, with the oldest versions of the dependencies that pyproject.toml allows.

PYTHON ?= python3
VENV := .venv$(if $(OLDEST),-oldest)
BIN := $(VENV)/bin
TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
TESTING := $(VENV)/test-$(TAG)$(if $(PEERS),-with-peers).stamp
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile # Python compiles what it imports
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses auto --maxprocesses 8 --dist worksteal
PYTEST += $(if $(OLDEST),-W default --disable-warnings) # old releases of other packages warn of one another
NEW_PIP := 'pip>=25.1' # the first that knows --group

QUICK ?= $(patsubst %,tests/test_%.py,architecture style arrays hyperparameters losses scores risk surfaces \
	statistics quadratic_theory line_search batches train_arguments \
	$(if $(OLDEST),figures sweep_figures landscape_figures data first_order minimize train))

.PHONY: demo test quick lint types docs bench clean

demo: $(VENV)/demo-$(TAG).stamp
	$(BIN)/python -m experiments race

test: lint types
	$(PYTEST)

quick: $(TESTING)
	$(BIN)/ruff check --quiet .
	$(PYTEST) $(QUICK)

lint: $(TESTING)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(TESTING)
	$(BIN)/mypy

docs: $(VENV)/docs-$(TAG).stamp
	$(BIN)/python -m experiments lecture --build --no-open --quiet
	@echo docs/_build/html/index.html

bench: $(TESTING)
	$(BIN)/python -m experiments bench all

clean:
	rm -rf .venv .venv-oldest docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One environment, made anew when another Python is asked for; a stamp is written when an install is complete.

$(VENV)/python-$(TAG).stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo-$(TAG).stamp: pyproject.toml | $(VENV)/python-$(TAG).stamp
	$(PIP) --editable '.[experiments]'
	@touch $@

$(VENV)/docs-$(TAG).stamp: pyproject.toml | $(VENV)/python-$(TAG).stamp
	$(PIP) --upgrade $(NEW_PIP)
	$(PIP) --editable '.[experiments,data]' --group docs
	@touch $@

$(TESTING): pyproject.toml | $(VENV)/python-$(TAG).stamp
	$(if $(OLDEST),$(BIN)/python tests/oldest.py > $(VENV)/oldest.txt)
	$(PIP) --upgrade $(NEW_PIP)
	$(PIP) --editable '.[experiments,data$(if $(PEERS),$(comma)peers)]' --group dev $(if $(OLDEST),--constraint $(VENV)/oldest.txt)
	@touch $@

comma := ,
