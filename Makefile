# mtlbench: every target does all of its own set-up. It needs Python 3.11 or newer, pip and make.

PYTHON ?= python3
# pytest workers of `make test`
JOBS ?= 2
# further flags of `make run`, such as ARGS="--seeds 0,1,2 --epochs 5"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
DOCS := docs/_build/html

# One thread for BLAS: NumPy's products are of T x T matrices. Torch keeps all cores.
BENCH := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only \
	--benchmark-quiet -p no:cacheprovider

# Pin the build backend too (pip 25.3 and newer; older ones ignore it).
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test lint types imports tests bounds docs leaderboard bench bench-check clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

run: $(VENV)/.installed  ## train mmoe with rlw on pets, with its baselines, and print Δ-MTL
	@$(BIN)/mtlbench run --arch mmoe --weight rlw --data pets $(ARGS)

test: lint types imports tests docs  ## everything that must pass: lint, types, layers, tests, docs
	@echo "make test: all passed"

lint: $(VENV)/.installed-dev  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy --strict
	$(BIN)/mypy --strict

imports: $(VENV)/.installed-dev  ## import-linter: the core knows no plugin, layers import downwards
	$(BIN)/lint-imports

tests: $(VENV)/.installed-dev  ## pytest on JOBS workers
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

bounds: $(VENV)/.installed-dev  ## pytest of what is compiled, with every index checked, in a minute or two
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=build/bounds $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
		tests/test_compiled_code.py tests/gradients tests/solvers tests/weightings

docs: $(VENV)/.installed-dev  ## build the documentation; a warning is an error
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -b html docs $(DOCS)
	@echo "docs: $(DOCS)/index.html"

leaderboard: $(VENV)/.installed  ## build this repository's leaderboard anew, from the records in results/leaderboard
	@$(BIN)/mtlbench leaderboard build results/leaderboard -o docs/_extra/leaderboard

bench: $(VENV)/.installed-dev  ## time mtlbench beside its peers, 35 minutes; write the tables that docs show
	$(BIN)/python benchmarks/peers/get.py
	$(BENCH) --tables write
	$(BENCH) --quick --tables refer
	$(BENCH) --quick --tables refer --again

bench-check: $(VENV)/.installed-dev  ## a short form of bench; fails where a ratio fell behind its reference
	$(BIN)/python benchmarks/peers/get.py
	$(BENCH) --quick --tables check || $(BENCH) --quick --tables check --again \
		|| $(BENCH) --quick --tables check --again

clean:  ## remove the environment and everything that was built; results and prepared data stay
	rm -rf $(VENV) docs/_build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .benchmarks mtlbench/__pycache__/compiled-*

# A stamp is newer than what it was made from, so a second call starts at once. The environment with the
# test tools holds all that a run needs; `make run` after `make test` installs nothing.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("mtlbench needs Python 3.11 or newer, this is %d.%d; try: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing mtlbench into $(VENV) (once; torch is large, this can take some minutes)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing mtlbench and its test tools into $(VENV) (once; this can take some minutes)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed
