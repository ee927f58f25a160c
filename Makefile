# Everything a contributor needs; each target makes .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test federated slow soak check bench bench-data docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/lifelong run quickstart --out runs/quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# Flower holds typer and rich below their newest releases: an environment of its own
.venv-federated/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-federated
	.venv-federated/bin/python -m pip install --quiet -e '.[test,federated]'
	touch $@

federated: .venv-federated/.installed
	.venv-federated/bin/python -m pytest tests/test_federation.py
	.venv-federated/bin/python -m pytest -m slow tests/test_federation_processes.py

# needs the corpora: LIFELONG_DATA=... make slow
slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# kills a small run at random moments, KILLS times, and compares every byte; then flips bytes of it, one by one
KILLS ?= 200
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.kills --kills $(KILLS) --seed $$(date +%s) --keep .soak
	$(BIN)/python -m tests.faults.flips .soak --every 997

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

# alone on the machine; the second kind needs the corpora: LIFELONG_DATA=... make bench-data
bench: $(VENV)/.installed-test
	for name in expand growth_exactness inherit report resume stream; do echo "== $$name"; \
	  $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-data: $(VENV)/.installed-test
	for name in growth_training steps_saved; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W -b html docs docs/_build

clean:
	rm -rf $(VENV) .venv-federated .soak docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
