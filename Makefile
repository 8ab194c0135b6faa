# `make demo` and `make test` need Python >= 3.11 and nothing else: they set up .venv from the locked, hashed packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements-dev.lock

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types contracts check generate bench e2e e2e-nodes mutants lock clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv with the locked packages and the project itself

$(STAMP): requirements-dev.lock pyproject.toml scripts/setup
	@PYTHON=$(PYTHON) VENV=$(VENV) scripts/setup
	@cp requirements-dev.lock $@

demo: $(STAMP) ## a receiver, three API servers and sinks on this machine: who gets what, and is anything lost
	@$(BIN)/audit-operator demo

test: $(STAMP) ## the fast tests: all of tests/
	@PYTHON=$(PYTHON) scripts/get-all
	$(BIN)/pytest -n auto -q

lint: $(STAMP) ## ruff, format included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## strict mypy
	$(BIN)/mypy

contracts: $(STAMP) ## imports go down only
	$(BIN)/lint-imports

check: lint types contracts test ## everything CI runs

generate: $(STAMP) ## write what is generated: crds/ (the chart's too), docs/reference.md, docs/cli.md, examples/argocd
	$(BIN)/audit-operator crds -o crds
	$(BIN)/audit-operator crds -o charts/audit-operator/crds
	$(BIN)/audit-operator crds --reference -o docs/reference.md
	$(BIN)/python -m audit_operator.cli.manual > docs/cli.md
	scripts/argocd-health

bench: $(STAMP) ## the tables of docs/benchmarks.md
	$(BIN)/python -m bench

e2e: $(STAMP) ## against a real API server (e2e/README.md says how one is found)
	@PYTHON=$(PYTHON) scripts/get-helm >/dev/null || true
	$(BIN)/pytest e2e -q --ignore=e2e/nodes

e2e-nodes: $(STAMP) ## in real pods on real nodes: containerd, kubelet and kubeadm in namespaces of this machine (needs root)
	@PYTHON=$(PYTHON) scripts/get-helm >/dev/null || true
	$(BIN)/pytest e2e/nodes -q

mutants: $(STAMP) ## whether tests can fail: changes of the code, one at a time, that a test must notice (an hour)
	$(BIN)/python scripts/mutants.py

lock: ## pin versions and hashes: what the image holds, what contributors need (needs uv and npm)
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --extra operator --extra receiver --extra sinks pyproject.toml -o requirements.lock
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 requirements-build.in -o requirements-build.lock
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 requirements-moto.in -o requirements-moto.lock
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 requirements-node.in -o requirements-node.lock
	npm --prefix scripts/azurite install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --extra dev pyproject.toml requirements-build.in -o requirements-dev.lock

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
