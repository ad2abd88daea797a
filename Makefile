# make sweep       set up, then run the default sweep from the grid to the report
# make test        set up, then lint, types and all tests
# make test-fast   every room, without lint and without what is slow: no cluster, no browser, no Triton interpreter
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A worker for each core; each gets whole files, those that need the Slurm cluster first (tests/helpers/lanes.py).
PARALLEL := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: sweep test test-fast lint clean

sweep: $(BIN)/sweep
	$(BIN)/python -m sweep launch sweep=default

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not triton"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/run.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: no venv module; on Debian: apt install python3-venv"; exit 1; }
	@echo "setting up $(VENV): a minute or two, 2 GB (more with CUDA)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

# The command `sweep`, for any folder inside a checkout.
$(BIN)/sweep: tools/command.py $(VENV)/run.stamp
	@printf '#!/bin/sh\nexec "%s" "%s" "$$@"\n' "$(abspath $(BIN)/python)" "$(abspath tools/command.py)" > $@
	@chmod +x $@

$(VENV)/test.stamp: $(BIN)/sweep requirements-test.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-test.txt
	@# CUDA builds of torch bring the Triton that they were made for; the interpreter tests need one everywhere.
	@$(BIN)/python -c "import triton" 2>/dev/null || \
		$(BIN)/python -m pip install -qq --disable-pip-version-check "triton==3.9.0; sys_platform == 'linux'"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
