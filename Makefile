PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What of pyproject.toml is installed beside the packages; CI adds what other tests compare with.
EXTRAS ?= dev

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml serving/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e "serving[server]" -e ".[$(EXTRAS)]"
	@touch $@

.PHONY: setup
setup: $(STAMP)  ## install into .venv (again only when pyproject.toml changed)

.PHONY: demo
# Fewer of TensorFlow's log lines between the demo's own; its first ones heed no level.
demo: export TF_CPP_MIN_LOG_LEVEL = 3
demo: $(STAMP)  ## train, retrofit, export, serve and query on handwritten digits
	$(BIN)/keras-bn demo

# A process more than there are cores, for tests of servers mostly wait. What shares a process, and what is
# first, says tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: test
test: check  ## lint, type-check and run every test
	$(PYTEST)

BACKEND_TESTS := \
	tests/inspection \
	tests/kernels \
	tests/layers \
	tests/statistics/test_drift.py \
	tests/statistics/test_exact.py \
	tests/statistics/test_moments.py \
	tests/statistics/test_population.py \
	tests/statistics/test_running.py \
	tests/statistics/test_two_samples.py \
	tests/surgery/test_activations.py \
	tests/surgery/test_averaged_weights.py \
	tests/surgery/test_checks.py \
	tests/surgery/test_cloning.py \
	tests/surgery/test_compiled.py \
	tests/surgery/test_convert.py \
	tests/surgery/test_copying.py \
	tests/surgery/test_fold.py \
	tests/surgery/test_folding.py \
	tests/surgery/test_folding_paths.py \
	tests/surgery/test_freeze.py \
	tests/surgery/test_graph.py \
	tests/surgery/test_inlining.py \
	tests/surgery/test_laws.py \
	tests/surgery/test_linear.py \
	tests/surgery/test_observe.py \
	tests/surgery/test_plain.py \
	tests/surgery/test_population_statistics.py \
	tests/surgery/test_recalibrate.py \
	tests/surgery/test_retrofit.py \
	tests/surgery/test_selection.py \
	tests/surgery/test_shards.py \
	tests/surgery/test_targets.py \
	tests/test_data.py

.PHONY: test-backends
test-backends: $(STAMP)  ## layers, statistics, surgery, inspection on JAX and PyTorch; `make test` runs them on TensorFlow
	$(BIN)/python -m pip install --quiet -e "serving[server]" -e ".[dev,backends]"
	for backend in jax torch; do \
		KERAS_BACKEND=$$backend $(PYTEST) -m "not slow" $(BACKEND_TESTS) || exit 1; \
	done

.PHONY: check
check: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: experiments
experiments: $(STAMP)  ## the paper's experiments, in their fast setting
	$(BIN)/python -m benchmarks.experiments all --fast

.PHONY: bench
bench: $(STAMP)  ## speed and memory beside the peers, into benchmarks/RESULTS.md; minutes, on an idle machine
	$(BIN)/python -m pip install --quiet -e "serving[server]" -e ".[dev,bench]"
	$(BIN)/python -m benchmarks

.PHONY: certify
certify: $(STAMP)  ## every function on every family of models, into docs/certificate.md; minutes
	$(BIN)/python -m pip install --quiet -e "serving[server]" -e ".[dev,bench]"
	$(BIN)/python -m benchmarks.certify

.PHONY: notebooks
notebooks: $(STAMP)  ## run the notebooks, outputs written into them
	$(BIN)/python notebooks/execute.py

.PHONY: docs
docs: $(STAMP)  ## build the documentation into site/html/; a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going -q -d site/.doctrees docs site/html
	@echo "open site/html/index.html"

.PHONY: docs-serve
docs-serve: docs  ## build the documentation and show it on http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site/html 8000

.PHONY: clean
clean:  ## remove the environment and everything the targets made
	rm -rf $(VENV) demo_output dist build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
