# make demo        install into .venv, train on the handwritten digits, show what was learned
# make test        the whole test suite          (ARGS="-k noise -n 2" reaches pytest)
# make test-fast   the tests that take less than two seconds each
# make check       format, lint, types, floors
# make bench       sfumato beside diffusers and denoising-diffusion-pytorch, in .venv-bench (ARGS="forward step": parts)
# make format      let ruff mend what it can
# make clean       remove .venv, .venv-bench, build products and caches; runs/ and reports/ stay

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/digits
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints-dev.txt

.PHONY: demo test test-fast check bench format clean

demo: $(VENV)/.installed
	$(BIN)/sfumato train digits --out $(RUN)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench:
	$(PYTHON) benchmarks/bench.py $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) .venv-bench build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is installed once, and again when what it is made from changes.
$(VENV)/.installed: pyproject.toml constraints-dev.txt
	@echo "installing sfumato into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python {sys.version.split()[0]} is too old: sfumato needs 3.10 or newer; name one by make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@
