# SPDX-License-Identifier: Apache-2.0
# One command for each thing a reviewer does. The environment is made and kept current by .ci/develop.py.

ARGS ?= --once
SECONDS ?= 60
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check fuzz bench peers fmt clean

help: ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

install: ## Make .venv and build the extension; does nothing when both are current
	@python3 .ci/develop.py

demo: install ## Run the demo once; `make demo ARGS=` keeps it up
	@$(BIN)/firedoor demo $(ARGS)

test: install ## Run every test: cargo test, then pytest with branch coverage
	@.ci/test

check: install ## Formatting, types, lints, licences, doctests, 10 s of fuzzing a target
	@.ci/check

fuzz: install ## Fuzz each target for SECONDS (60 by default) and keep what is found
	@.ci/fuzz $(SECONDS)

bench: install ## Measure beside Envoy and SPIRE, some 15 minutes; BENCH="--only b --help" and the like
	@$(BIN)/python -m bench $(BENCH)

peers: install ## Build the programs of others (minutes, the first time), and run the tests that drive them
	@$(BIN)/python -m tests.peers.build
	@$(BIN)/pytest -q -m peer

fmt: install ## Format Python and Rust
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q . ; cd mtls && cargo fmt --all

clean: ## Remove what the targets made
	@where=$$(python3 .ci/develop.py --where); rm -rf "$$where" .venv build dist mtls/target mtls/_mtls.abi3.so
