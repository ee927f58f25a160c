# Everything a contributor needs; each target makes the environment that it runs in when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the lowest and the newest Python that the package supports
LOWEST ?= 3.11
NEWEST ?= 3.13
# contiguous shares of the tests: what a module prepares once is prepared by one process
PYTEST := python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: quickstart test browser test-lowest test-newest federated slow soak fuzz check bench bench-data docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing lifelong and what it stands on into $(VENV) (some minutes, see docs/install.md for less)"
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
	$(BIN)/$(PYTEST)

# uv finds or fetches the interpreters and resolves to the lowest versions
.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet uv

# the lowest versions that pyproject.toml declares, on the lowest Python
.venv-lowest/.installed: pyproject.toml | .venv-uv/bin/uv
	.venv-uv/bin/uv venv --quiet --clear --python $(LOWEST) .venv-lowest
	.venv-uv/bin/uv pip install --python .venv-lowest --resolution lowest-direct -e '.[test]'
	touch $@

test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/$(PYTEST)

# what the package index gives today, on the newest Python; installed anew each time, every warning is an error
test-newest: | .venv-uv/bin/uv
	.venv-uv/bin/uv venv --quiet --clear --python $(NEWEST) .venv-newest
	.venv-uv/bin/uv pip install --python .venv-newest --upgrade -e '.[test]'
	.venv-newest/bin/$(PYTEST) --strict-warnings

# Flower holds typer and rich below their newest releases: an environment of its own
.venv-federated/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-federated
	.venv-federated/bin/python -m pip install --quiet -e '.[test,federated]'
	touch $@

federated: .venv-federated/.installed
	.venv-federated/bin/python -m pytest tests/federation/test_federation.py
	.venv-federated/bin/python -m pytest -m slow tests/federation/test_processes.py

# the pages in Chromium, where there is one (apt-get install chromium): widths, colours, hover, sorting, downloads
browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser

# needs the corpora: LIFELONG_DATA=... make slow
slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# kills a small run at random moments, KILLS times, and compares every byte; then flips bytes of it, one by one
KILLS ?= 200
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.kills --kills $(KILLS) --seed $$(date +%s) --keep .soak
	$(BIN)/python -m tests.faults.flips .soak --every 997
	$(BIN)/python -m tests.faults.kills --kills $(KILLS) --seed $$(date +%s) --rich

# input at random, FUZZ cases of it; what is found is kept in tests/faults/cases/ and put again by the tests
FUZZ ?= 10000
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.fuzz --cases $(FUZZ) --seed $$(date +%s) --keep

# the tests that every warning fails: growth, planning, training, evaluation and the command line run through
STRICT := tests/cli tests/pipeline tests/expand/test_checkpoint.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sphinx-build -W -q -b html docs docs/_build
	$(BIN)/$(PYTEST) --strict-warnings -q $(STRICT)

# alone on the machine; the second kind needs the corpora: LIFELONG_DATA=... make bench-data
bench: $(VENV)/.installed-test
	for name in expand growth_exactness inherit report resume stream; do echo "== $$name"; \
	  $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-data: $(VENV)/.installed-test
	for name in growth_training steps_saved; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W -b html docs docs/_build

clean:
	rm -rf $(VENV) .venv-* .soak docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
