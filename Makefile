# One line a target; CI runs the same ones. A second run costs seconds: the stamps below follow the lock files.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check format bench gpu eval serve clean

help:  ## Say what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.runtime  ## Create .venv with everything the commands need

demo: setup  ## Index the bundled notes, ask across languages, show cited answers
	@$(BIN)/clinrag demo

test: $(VENV)/.dev  ## Pass the tests (under 10 minutes on 2 cores, no network)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev  ## Lint, format, types, the import rule, the documentation's commands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_docs.py

format: $(VENV)/.dev  ## Put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

eval: $(VENV)/.dev  ## Evaluate retrieval (DATA=folder for the public sets; the bundled notes otherwise)
	$(BIN)/clinrag eval run smoke $(if $(DATA),--data $(DATA))

bench: .venv-bench/.ready  ## Measure speed beside peers, as ratios within one run (DATA=folder for real notes)
	.venv-bench/bin/python -m eval.bench $(if $(DATA),--data $(DATA)) $(ARGS)

gpu: .venv-gpu/.ready  ## Test and measure both vector indexes and embedding on this machine's GPU
	.venv-gpu/bin/python -m pytest -m gpu -W default
	.venv-gpu/bin/python -m eval.bench.gpu $(ARGS)

serve: setup  ## Serve HTTP on loopback
	$(BIN)/clinrag serve

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv-bench/.ready: requirements.lock eval/bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet -r requirements.lock
	.venv-bench/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	-for peer in $$(grep -v '^#' eval/bench/requirements.txt); do .venv-bench/bin/pip install --quiet "$$peer"; done
	@touch $@

.venv-gpu/.ready: requirements.lock requirements-dev.lock
	$(PYTHON) -m venv .venv-gpu
	sed 's/^faiss-cpu==/faiss-gpu==/' requirements.lock > .venv-gpu/requirements.lock
	.venv-gpu/bin/pip install --quiet -r .venv-gpu/requirements.lock -r requirements-dev.lock
	.venv-gpu/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/pip install --quiet -r requirements-dev.lock
	@touch $@
