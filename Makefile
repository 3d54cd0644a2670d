# Everything runs in a virtual environment of its own; PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUESTION ?= why must int8 codes be compared by cosine?
SEARCH := $(BIN)/pplx-search --home .demo

.PHONY: demo test test-without-vnni lint docs clean

# Indexes this repository's own text and code, searches it, and looks for changes, of which there are none.
demo: $(VENV)/.search
	$(SEARCH) add README.md ARCHITECTURE.md pplx_edge converters --include '*.py' --include '*.md'
	$(SEARCH) search "$(QUESTION)" -k 3
	$(SEARCH) update

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

# The tests of int8 graphs on an emulated x86 processor without VNNI; needs qemu-x86_64 (Debian: qemu-user).
test-without-vnni: $(VENV)/.dev
	qemu-x86_64 -cpu Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm \
		$(BIN)/python -m pytest -q -p no:cacheprovider -m without_vnni tests/edge tests/quant

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation as a website, in site/.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.search: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[search]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.search

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.search

clean:
	rm -rf $(VENV) .demo site build *.egg-info .pytest_cache .ruff_cache .hypothesis
