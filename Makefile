# Everything runs in a virtual environment of its own. PYTHON selects the interpreter that it is made from; the default is
# the first of these names that is new enough. Only what GNU make 3.81 and bash 3.2 understand, which macOS comes with.
PYTHON ?=
PYTHONS := python3.13 python3.12 python3.11 python3.14 python3
VENV ?= .venv
BIN := $(VENV)/bin
QUESTION ?= why must int8 codes be compared by cosine?
SEARCH := $(BIN)/pplx-search --home .demo

# Programs that succeed in Python 3.11 or newer, and that print the version.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
VERSION := import sys; print("%d.%d" % sys.version_info[:2])

.PHONY: demo test test-kernels test-without-vnni lint docs wheels environment clean

# Indexes this repository's own text and code, searches it, and looks for changes, of which there are none.
demo: $(VENV)/.search
	$(SEARCH) add README.md ARCHITECTURE.md pplx_edge converters --include '*.py' --include '*.md'
	$(SEARCH) search "$(QUESTION)" -k 3
	$(SEARCH) update

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

# The CPU kernels for other processors, emulated, and with sanitizers; skips what is not installed (Debian: libsimde-dev,
# g++-aarch64-linux-gnu and qemu-user).
test-kernels: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m emulated tests/edge

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

# Wheels for Linux on x86-64 and 64-bit Arm and for macOS on Apple Silicon, in dist/, built on any machine.
wheels: $(VENV)/.search
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[wheels]'
	.ci/wheels $(BIN)/python

# Make the virtual environment if there is none, if its Python does not work or is too old, or if PYTHON has another version.
USABLE := $(shell $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && { test -z "$(PYTHON)" || \
	test "`"$(PYTHON)" -c '$(VERSION)' 2>/dev/null`" = "`$(BIN)/python -c '$(VERSION)'`"; } && echo yes)
ifneq ($(USABLE),yes)
$(VENV)/.search $(VENV)/.dev $(VENV)/.docs: environment
endif

environment:
	@for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
		if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
			echo "$$python -m venv --clear $(VENV)"; \
			"$$python" -m venv --clear $(VENV) || { rm -f $(BIN)/python; exit 1; }; \
			exit; \
		fi; \
		version=`"$$python" -c '$(VERSION)' 2>/dev/null` || version=missing; \
		found="$$found, $$python ($$version)"; \
	done; \
	echo "error: pplx-edge needs Python 3.11 or newer; found only$${found#,}: get one with" \
		"'brew install python@3.13', 'uv python install 3.13' or from python.org, then run make again" \
		"(with PYTHON=/path/to/python if it is not on the PATH)" >&2; \
	exit 1

# An editable install compiles the CPU kernels in their folder, so it is repeated when one of their files changes.
PACKAGE := pyproject.toml constraints.txt $(wildcard $(addprefix pplx_edge/kernels/,CMakeLists.txt include/* src/*))

$(VENV)/.search: $(PACKAGE)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[search]'
	touch $@

$(VENV)/.dev: $(PACKAGE)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.search

$(VENV)/.docs: $(PACKAGE)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.search

clean:
	rm -rf $(VENV) .demo site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	cd pplx_edge/kernels && rm -rf CMakeFiles CMake[CI]*.txt build.ninja *.cmake .[!.]* libpplx_kernels.*
