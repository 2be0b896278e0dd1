# `make demo` and `make test` set up .venv themselves; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
# Named by exact version and installed first: a plain `torch` may bring several GB of CUDA libraries along.
TORCH ?= torch==2.13.0
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow lint clean

demo: .venv/.demo
	$(BIN)/python training_scripts/run_pipeline.py training_scripts/configs/ml-100k.yaml

# A process a core, one thread each: the models of the tests are too small for several.
test: .venv/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: .venv/.dev .venv/.demo
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.venv/.torch:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one, such as make demo PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

# One stamp an extra: what setup.cfg asks for is installed again when it changes.
.venv/.%: .venv/.torch setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
