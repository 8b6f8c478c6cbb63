# make quickstart | test | check | docs | install: each needs only Python 3.11 or newer, make and a network.
# make test-device: the device side with the base install, on any Python from 3.10 and with the newest packages; with the
# oldest that pyproject.toml allows: make test-device PYTHON=python3.10 RESOLUTION=lowest-direct
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

RESOLUTION ?= highest
DEVICE_VENV := .venv-device
DEVICE_BIN := $(DEVICE_VENV)/bin
DEVICE_UV := VIRTUAL_ENV=$(CURDIR)/$(DEVICE_VENV) $(DEVICE_BIN)/uv
DEVICE_TESTS := tests/device tests/bench tests/cli/test_doctor.py tests/cli/test_signals.py tests/cli/test_streams.py \
	tests/data/test_checking.py tests/data/test_importers.py tests/data/test_manifest.py tests/data/test_synthetic.py \
	tests/data/test_tables.py tests/test_chance.py tests/test_extras.py tests/test_files.py tests/test_locks.py \
	tests/test_metrics.py tests/test_preprocessing.py tests/test_run_folder.py tests/test_spread.py

.PHONY: install quickstart test test-device check docs

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt \
		-C editable_mode=compat -e '.[dev]'
	touch $@

quickstart: install
	$(BIN)/edgeembed quickstart

# Two processes of one thread each take half the time of one process of two: most tests are too small for threads.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
		--cov=edgeembed --cov-report=term --cov-fail-under=85

# What the tests themselves need comes second, and may not change what the base install brought.
test-device:
	$(PYTHON) -m venv --clear $(DEVICE_VENV)
	$(DEVICE_BIN)/python -m pip install --quiet uv
	$(DEVICE_UV) pip install --quiet --resolution $(RESOLUTION) -C editable_mode=compat -e .
	$(DEVICE_UV) pip freeze --exclude-editable > $(DEVICE_VENV)/base.txt
	$(DEVICE_UV) pip install --quiet -c $(DEVICE_VENV)/base.txt onnx openvino packaging pyarrow 'pytest>=8.3'
	cat $(DEVICE_VENV)/base.txt
	$(DEVICE_BIN)/python -m pytest -m 'not slow and not training' $(DEVICE_TESTS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pylint edgeembed

# The site, in site/: warnings (a dead link, a name that the reference lacks) are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
