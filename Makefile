# make study   the main job: all cells on the butterflies that the project draws itself
# make test    what CI runs: format, lint, types, tests
# make lint    the first three of them

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: study test lint clean

study: $(READY)
	$(BIN)/mariposa run quick

test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
