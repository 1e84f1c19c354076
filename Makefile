# One virtual environment in the checkout; every target sets it up first and only when something changed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Waiting threads that spin make busy machines several times slower.
export OMP_WAIT_POLICY := passive

# Files of tests go to the two processes in the order of tests/conftest.py.
TEST := OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: install demo test test-fast lint benchmark clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable ".[development]"
	touch $@

demo: install
	$(RUN)/shadow-defense demo

test: install lint
	$(TEST)

test-fast: install
	$(TEST) -m "not slow and not engine"

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

benchmark: install
	$(RUN)/python benchmarks/defended_step.py
	$(RUN)/python benchmarks/attacks.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
