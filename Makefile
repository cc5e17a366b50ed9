# `make help` lists what can be made. Everything runs from .venv, which `make install` builds.

PYTHON ?= python3
TORCH  ?= $(or $(shell cat .venv/torch 2>/dev/null),$(shell grep '^torch==' constraints.txt))
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo gallery comparison test check bench clean FORCE

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/installed  ## make .venv with the tested versions (TORCH=torch==2.11.0 for another torch)

# Holds the wanted torch, so that another TORCH installs anew.
.venv/torch: FORCE
	@mkdir -p .venv
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

.venv/installed: pyproject.toml constraints.txt .venv/torch
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@{ grep -Fxq '$(TORCH)' constraints.txt && cat constraints.txt || \
		{ grep -vE '^(torch|triton)==' constraints.txt; echo '$(TORCH)'; }; } > .venv/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c .venv/constraints.txt '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check -c .venv/constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## draw puppets, train LIA on them for five minutes, animate held-out ones
	$(BIN)/lightning fit --config experiments/lia_puppets.yaml
	$(BIN)/lightning test --config experiments/lia_puppets.yaml --ckpt_path last

gallery: install  ## train InMoDeGAN on puppets (under an hour), show all ways to generate videos
	$(BIN)/lightning fit --config experiments/inmodegan_puppets.yaml --ckpt_path last
	$(BIN)/python docs/gallery.py

comparison: install  ## train LIA, FOMM and MRAA on puppets (12 minutes each), compare them
	$(BIN)/python benchmarks/comparison.py

test: install  ## run the tests, in two processes
	$(BIN)/pytest -q -n 2 --dist worksteal --cov --cov-report=term:skip-covered

check: install  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: install  ## time what the documents claim; results as JSON under benchmarks/results
	$(BIN)/python benchmarks

clean:  ## remove what training and the demo wrote (not .venv, not data/)
	rm -rf runs out
