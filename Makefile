# Every target sets up .venv itself. Python >= 3.11 is all it needs.
PYTHON ?= python3
# Installed first and by exact version: a plain `torch` may bring several GB of CUDA libraries.
TORCH ?= torch==2.13.0
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo serve test test-slow fuzz lint package clean

demo: .venv/.demo
	$(BIN)/python training_scripts/demo.py

# The page and the REST API of the demo's model, at http://127.0.0.1:8000.
serve: .venv/.serve
	$(BIN)/gensar serve runs/ml-100k

# One process per core with one thread each: the test models are too small for more threads.
test: .venv/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: .venv/.dev .venv/.demo
	$(BIN)/python -m pytest -m slow

# Mutated tables, random calls and requests, hostile folders, kills and double starts: counts by class, an hour or two.
fuzz: .venv/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run_all.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The sdist and the wheel in dist/, checked as PyPI checks them.
package: .venv/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.venv/.torch:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one, such as make demo PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

# One stamp per extra. An extra is installed again when setup.cfg or pyproject.toml changes.
.venv/.%: .venv/.torch setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
