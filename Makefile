# `make` lists the targets. Each target installs what it needs; on a fresh Debian or Ubuntu, root needs only git and make.

SHELL := bash
MAKEFLAGS += --no-print-directory
BIN := .venv/bin

# More arguments for the program of a target: make test ARGS="tests/unit -k redact"
ARGS ?=

# The size of the random campaigns
SEEDS ?= 20
SEED ?=
RUNS ?= 100
LINES ?= 10000

# All bash files; shellcheck must report nothing for them.
SCRIPTS = $(shell grep -rlI --exclude-dir=node_modules -E '^.(!/usr/bin/env bash| shellcheck shell=bash)$$' .ci deploy scripts sql)

# pytest in parallel, and the form that `make gate-…` uses
PARALLEL := $(BIN)/pytest -n auto --dist loadgroup
PYTEST := $(PARALLEL) -q

# The tests of the gates, so that `make test` runs them once
SPEC_TESTS := tests/gates/test_spec_kit.py
DOCS_TESTS := tests/gates/test_docs.py
SCHEMA_TESTS := $(addprefix tests/db/test_,$(addsuffix .py,migrations migration_history verify supabase_cli schema_docs))
GATED := $(SPEC_TESTS) $(DOCS_TESTS) $(SCHEMA_TESTS)

.PHONY: help setup demo demo-odoo demo-picture screenshots test test-odoo test-matrix coverage faults kills check format \
	gates gate-spec gate-docs schema schema-docs gate-schema gate-prisma bench compare wheel wheelhouse image lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the pinned dependencies and an editable install
	@scripts/setup

demo: setup ## run real workflows with a real PostgreSQL and a real Docker engine
	@scripts/engine run deploy/demo/run $(ARGS)

demo-odoo: setup ## run the whole chain with real Odoo, from push to deploy (10 minutes the first time, as root, 5 GB)
	@scripts/engine run deploy/demo/odoo/run $(ARGS)

demo-picture: setup ## run the demo in a pseudo-terminal and write its screen to docs/demo.svg
	@scripts/engine run $(BIN)/python -m deploy.demo.picture

screenshots: setup ## show the console in Chromium with example runs, and write docs/console-*.png
	@$(BIN)/python -m tests.console.screenshots

test: check ## run the checks, the gates, and all other tests
	@$(if $(ARGS),,$(MAKE) gates)
	@scripts/engine run $(PARALLEL) $(or $(ARGS),$(GATED:%=--ignore=%) --ignore=tests/odoo)

test-odoo: setup ## run the Odoo tools with real Odoo 19 and 14; the first time makes their images (9 minutes, as root, 8 GB)
	@scripts/engine run $(BIN)/pytest -n 2 --dist loadfile -v $(or $(ARGS),tests/odoo)

test-matrix: setup ## run the tests on bare Debian machines with other engines, Pythons and PostgreSQLs; needs root
	@$(BIN)/python -m tests.matrix $(ARGS)

coverage: setup ## run all tests and report which lines of worker/ they executed
	@scripts/engine run $(PARALLEL) --cov --cov-report term $(or $(ARGS),--ignore=tests/odoo)

faults: setup ## run SEEDS=20 random fault campaigns; SEED=n repeats one
	@scripts/engine run $(BIN)/python -m tests.faults.campaign --seeds $(SEEDS) $(if $(SEED),--seed $(SEED))

kills: setup ## kill a worker every second under RUNS=100 runs of LINES=10000 lines
	@scripts/engine run $(BIN)/python -m tests.faults.campaign --kills $(RUNS) --lines $(LINES)

check: setup ## check lint, format, types, import direction and shell scripts
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/shellcheck --external-sources $(SCRIPTS)
	@mkdir -p build && { $(BIN)/lint-imports > build/imports.log || { cat build/imports.log; exit 1; }; }

format: setup ## format the Python files and repair what ruff can
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

gates: gate-spec gate-docs gate-schema gate-prisma ## run the four gates

gate-spec: setup ## check the four files of spec/odooops-sh, and that they name only what exists
	@$(BIN)/pytest -n 0 -q $(SPEC_TESTS)

gate-docs: setup ## check the documents, their links, and docs/coverage.md
	@$(BIN)/pytest -n 0 -q $(DOCS_TESTS)

schema: setup ## write the schema that the tests and `db verify` expect; then review the diff
	@$(BIN)/python -m tests.support.schema

schema-docs: setup ## write the schema's documents (DBML, ERD, Prisma, types) from the live schema; then review the diff
	@$(BIN)/python -m tests.support.schema_docs

gate-schema: setup ## check the migrations, also with the Supabase CLI, and DBML and ERD
	@$(PYTEST) $(SCHEMA_TESTS) -k "not prisma and not types"

gate-prisma: setup ## check the Prisma schema and the TypeScript types
	@$(PYTEST) $(SCHEMA_TESTS) -k "prisma or types"

bench: setup ## measure log store, queue and runs against baselines, and write docs/benchmarks.md
	@scripts/engine run $(BIN)/python -m tests.bench $(ARGS)

compare: setup ## run one job here and on Celery, Prefect, Airflow, Dagster and Buildbot, with faults
	@scripts/engine run $(BIN)/python -m tests.bench.compare $(ARGS)

wheel: setup ## build the wheel into dist/
	@rm -f dist/ops_worker-*.whl
	@$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

wheelhouse: setup ## collect the wheels for the image in build/wheels
	@scripts/wheelhouse

image: setup ## build the worker's image: make image BASE=python:3.12-slim ARGS=ops-worker:mine
	@scripts/engine run scripts/image $(ARGS)

lock: ## pin the newest dependencies into requirements/*.txt
	@scripts/lock

clean: ## remove the files that make created (not the images)
	rm -rf .venv build dist .coverage .coverage.* .*_cache .hypothesis
