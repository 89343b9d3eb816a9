# `make demo` and `make test` install what they need on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-slow check bench constraints clean

install: $(INSTALLED)

# uv resolves torch and torchvision together and from the package index alone, so the pair always fits.
# Compiled once here, as a machine that writes no bytecode compiles torch anew in every process: 15 s each.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt \
	    --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/topwork demo

test: install
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/run_all.py

# Pins the newest versions that pyproject.toml allows.
constraints:
	$(BIN)/python -m uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --all-extras \
	    --python-version 3.11 --output-file constraints.txt pyproject.toml
	$(BIN)/python -m uv --version | awk '{print "uv==" $$2}' >> constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
