# make quickstart | test | check | install: each needs only Python 3.11 or newer, make and a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test check

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt \
		-C editable_mode=compat -e '.[dev]'
	touch $@

quickstart: install
	$(BIN)/edgeembed quickstart

test: install
	$(BIN)/python -m pytest --cov=edgeembed --cov-report=term --cov-fail-under=85

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
