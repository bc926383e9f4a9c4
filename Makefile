# Two commands for a fresh machine: `make demo` and `make test`. Everything goes into .venv and build/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXAMPLE := examples/tiny-sardine
DEMO   := build/tiny-sardine.gguf

# pip fetches what the build needs. The tests need torch, of which PyPI's build brings CUDA packages: install
# another build of the same version into .venv first to avoid that.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint format clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3-venv is missing: apt install python3-venv" >&2; exit 1; }

# Built once as a wheel; the extras then add tools to it without building again.
SOURCES := pyproject.toml CMakeLists.txt $(shell find cpp python convert $(EXAMPLE) -type f -not -name '*.pyc')
WHEEL = $(firstword $(wildcard build/dist/sardine_gguf-*.whl))

build/dist/.built: $(BIN)/python $(SOURCES)
	rm -rf build/dist && mkdir -p build/dist
	@echo "building sardine_gguf (the first time also ggml and libllama: some minutes)"
	$(PIP) wheel --quiet --no-deps --wheel-dir build/dist .
	@touch $@

$(VENV)/.installed: build/dist/.built
	$(PIP) install --quiet $(WHEEL)
	$(PIP) install --quiet --no-deps --force-reinstall $(WHEEL)
	@touch $@

$(VENV)/.test-tools: $(VENV)/.installed
	$(PIP) install --quiet '$(WHEEL)[test]'
	@touch $@

$(DEMO): $(VENV)/.installed $(wildcard $(EXAMPLE)/base/* $(EXAMPLE)/srde_weights.pt)
	@mkdir -p build
	$(BIN)/convert-sardine --base $(EXAMPLE)/base --srde $(EXAMPLE)/srde_weights.pt -o $@ --outtype q8_0 --force

# On a terminal a chat; without one the question of the model card.
demo: $(DEMO)
	@if [ -t 0 ] && [ -t 1 ]; then \
	    $(BIN)/sardine-cli -m $(DEMO) --temp 0; \
	else \
	    $(BIN)/sardine-cli -m $(DEMO) --temp 0 -p 'What is 15% of 80?'; \
	fi

test: $(VENV)/.test-tools
	$(BIN)/python -m pytest

$(VENV)/.dev-tools: $(VENV)/.installed
	$(PIP) install --quiet '$(WHEEL)[dev]'
	@touch $@

lint: $(VENV)/.dev-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.dev-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build
