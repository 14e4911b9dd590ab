# Needs Python 3.11+, make and git; everything else is set up below the project's own folder, and shown while it happens.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# uv from PATH, else its wheel under .cache/ (tools/get-uv says what it does).
UV = uv="$$(tools/get-uv)"; "$$uv"
DEV = $(UV) run --group dev
# Trust what the machine trusts: many a company's network ends TLS itself.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= true
export UV_NATIVE_TLS ?= true
endif

SOURCES = shared services cli bench infra loadtests tests tools
EXISTING = $(wildcard $(SOURCES))

.PHONY: help setup run test check lint fmt bench conformance soak chaos superset lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything that development and the tests need, into .venv
	$(UV) sync --group dev

# 130 is an interrupt: how a demo ends.
run: ## set up what local mode needs, then the demo: servers, policy, a first governed call
	$(UV) run tidegate demo $(if $(LISTEN),--listen $(LISTEN)) || [ $$? -eq 130 ]

test: check ## everything: checks, then all tests on real parts (what CI runs)

# Most tests wait for real parts: more workers than processors. -rR names what passed at its second try only: a fault too.
check: lint ## format, lint, types, import contracts, then all tests (WORKERS, default 3)
	$(DEV) python -m tests.parts.ready
	$(DEV) pytest -n $(or $(WORKERS),3) --dist loadfile --reruns 1 -rR

lint: setup ## the checks alone, without tests
	$(DEV) ruff format --check $(EXISTING)
	$(DEV) ruff check $(EXISTING)
	$(DEV) mypy
	$(DEV) lint-imports

fmt: setup ## format the code and apply safe fixes
	$(DEV) ruff format $(EXISTING)
	$(DEV) ruff check --fix $(EXISTING)

# Each is a module of its own with --help; `python -m bench.run` alone is the governed call.
bench: setup ## measure a governed call beside a direct one and a bare passthrough, then the log, decisions, commands (15 minutes)
	$(DEV) python -m bench.run
	$(DEV) python -m bench.durability
	$(DEV) python -m bench.sealing
	$(DEV) python -m bench.ingest --events 100000 --runs 1
	$(DEV) python -m bench.freshness --seconds 15
	$(DEV) python -m bench.audit --calls 10000
	$(DEV) python -m bench.decisions
	$(DEV) python -m bench.limits --rounds 2
	$(DEV) python -m bench.killswitch
	$(DEV) python -m bench.stalls --calls 1

conformance: setup ## run the MCP conformance suite directly and through two edges, and write docs/conformance.md (ARGS=--help)
	$(DEV) python -m tests.conformance.run $(ARGS)

soak: setup ## 20,000 calls of clients that vanish, over two edges; then everything must be back (CALLS, SESSIONS, SEED, PLOT)
	$(DEV) python -m tests.soak.run $(if $(CALLS),--calls $(CALLS)) $(if $(SESSIONS),--sessions $(SESSIONS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(PLOT),--plot $(PLOT))

chaos: setup ## ten minutes of faults under load over a whole cluster; then the books must balance (ARGS=--help)
	$(DEV) python -m tests.chaos.run $(ARGS)

superset: setup ## import the dashboards into a real Superset and ask every chart (848 MB under .cache, some minutes)
	$(DEV) python -m tools.superset --check

lock: ## resolve the newest versions anew and write them as pins into pyproject.toml
	$(UV) run --no-project --python '>=3.11' python tools/pin.py "$$uv"

clean: ## remove what setup, tests and runs made (the data of local mode under data/ stays)
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist uv.lock
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
