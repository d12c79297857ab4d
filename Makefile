# `make demo` and `make test` work on a fresh machine with Python 3.11+, git, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test chaos cluster-test rehearsal rehearsal-postgresql lint clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

# Stamp file: reinstall only when the pins or the project file change.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (about 1.5 GB; torch is the largest part)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED) ## run the quick start: 8 trainings, their evaluations, the report
	@echo "== submitting sweeps/quickstart.yaml"
	$(BIN)/xsweep submit sweeps/quickstart.yaml --no-start
	@echo "== running the missing jobs (results stay in .xsweep/)"
	$(BIN)/xsweep run
	@mkdir -p reports
	@for format in latex:tex markdown:md text:txt; do \
	  $(BIN)/xsweep report quickstart --measure nDCG@10 --measure RR@10 \
	    --format $${format%:*} --output reports/quickstart.$${format#*:} || exit 1; done
	@cat reports/quickstart.txt

test: $(INSTALLED) lint ## run the linters and the whole test suite
	$(BIN)/python -m pytest --durations=15

# About eleven minutes; each test has its own time limit.
chaos: $(INSTALLED) ## fault tests: kill, stop and disconnect processes; report what happened
	XSWEEP_CHAOS=1 $(BIN)/python -m pytest -q tests/db/test_races.py tests/db/test_outages.py \
	  tests/db/test_recovery.py tests/db/test_machine.py tests/orchestrator/test_recovery.py

rehearsal: $(INSTALLED) ## run all 4,080 jobs of the study with tiny models while killing processes
	$(BIN)/python benchmarks/rehearsal.py

rehearsal-postgresql: $(INSTALLED) ## the same on PostgreSQL, whose server is killed too
	$(BIN)/python benchmarks/rehearsal.py --database postgresql

# Needs root; about 15 minutes. Stops with a message where namespaces are not permitted.
cluster-test: $(INSTALLED) ## inject faults into three hosts made of network namespaces
	$(BIN)/python -m tests.cluster

lint: $(INSTALLED) ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove caches and build output (keeps .venv and .xsweep)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
