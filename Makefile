# One virtual environment in the checkout; every target sets it up first and only when something changed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Waiting threads that spin make busy machines several times slower.
export OMP_WAIT_POLICY := passive
# Tests start a hundred processes, each of which would compile the package anew where this is set.
export PYTHONDONTWRITEBYTECODE :=

TEST := env OMP_NUM_THREADS=1 $(RUN)/python -m pytest
# Files in their order, whole programs first and doctests last, of which none keeps one process busy when the others have
# finished. Slow tests wait for processes of their own, so that three workers leave two cores less idle than two do.
IN_ORDER := --dist loadfile --no-loadscope-reorder tests/test_*.py tests/[a-z]*/ src/shadow_defense

.PHONY: install demo test test-engines test-others test-fast lint style types docs wheel benchmark clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[development]"
	touch $@

demo: install
	$(RUN)/shadow-defense demo

# Engines wait more than they compute: types and the other tests take what they leave, and no more, since Flower gives up
# a client that is starved for half a minute, and a SuperLink that takes 15 seconds to start.
test: style
	$(MAKE) -j 3 types test-engines test-others

test-engines: install
	$(TEST) -m engine tests/federated

test-others: install
	CHECK_SHAPES=1 nice -n 19 $(TEST) -n 3 $(IN_ORDER) -m "not engine"

test-fast: install
	$(TEST) -n 2 $(IN_ORDER) -m "not slow and not engine"

lint: style types

style: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: install
	nice -n 19 $(RUN)/mypy

docs: $(VENV)/.docs
	$(RUN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

wheel:
	PYTHON=$(PYTHON) .ci/try-wheel

benchmark: install
	$(RUN)/python benchmarks/defended_step.py
	$(RUN)/python benchmarks/attacks.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
