# `make demo` and `make test` set up .venv on the first call; later calls reuse it until one of these changes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest/bin

.PHONY: demo browser-demo test test-slow test-oldest check docs notebooks bench setup

setup: $(READY)

$(READY): pyproject.toml setup.py $(wildcard spela_kernels/*/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev,docs]"
	touch $(READY)

demo: $(READY)
	$(BIN)/spela demo

# A page that learns in a browser. DATA=mnist DATA_ROOT=folder trains on MNIST's idx files instead of the bundled digits.
DATA ?= digits
PORT ?= 8765
BROWSER := build/browser
browser-demo: $(READY)
	npm ci --prefix examples/browser --omit=dev --ignore-scripts --no-audit --no-fund
	$(BIN)/python examples/browser/build.py --out $(BROWSER) --data $(DATA) $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)")
	@echo "Open http://localhost:$(PORT) (Ctrl-C ends the server)"
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(BROWSER) $(PORT)

# Two processes, a file at a time: tests compute on one thread. In the order of files, whose last are short: files of few
# tests, which xdist would put last, have the longest.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The oldest versions that pyproject.toml admits, in an environment of their own.
test-oldest:
	test -x $(OLDEST)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python tests/oldest.py > .venv-oldest/constraints.txt
	$(OLDEST)/python -m pip install --quiet --constraint .venv-oldest/constraints.txt -e ".[dev,tensorboard]"
	$(OLDEST)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

# The documentation site in site/: a broken link or a public name without documentation fails it (with --quiet mkdocs would
# not count warnings, and pass). The variable silences
# mkdocs-material's advertisement of its successor.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The tutorials, saved with what they put out.
notebooks: $(READY)
	$(BIN)/python tests/docs/notebook_runs.py

bench: $(READY)
	$(BIN)/python -m pytest bench --benchmark-only -o addopts= --benchmark-json=bench.json --benchmark-max-time=0.5 --benchmark-group-by=group --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname
