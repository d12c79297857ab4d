# `make demo` and `make test` are all that a fresh machine needs: Python 3.11+, git, make, a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test chaos cluster-test rehearsal rehearsal-postgresql lint clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# One stamp for both: an installation is repeated only when the pins or the project file change.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (about 1.5 GB; torch is the largest part)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED) ## run the quick start: 8 trainings, their evaluation and the report
	@echo "== submitting sweeps/quickstart.yaml"
	$(BIN)/xsweep submit sweeps/quickstart.yaml --no-start
	@echo "== running what is missing (results stay in .xsweep/)"
	$(BIN)/xsweep run
	@mkdir -p reports
	@for format in latex:tex markdown:md text:txt; do \
	  $(BIN)/xsweep report quickstart --measure nDCG@10 --measure RR@10 \
	    --format $${format%:*} --output reports/quickstart.$${format#*:} || exit 1; done
	@cat reports/quickstart.txt

test: $(INSTALLED) lint ## run the whole test suite
	$(BIN)/python -m pytest --durations=15

# About eleven minutes; each test has a time limit of its own.
chaos: $(INSTALLED) ## kill, stop and cut off everything for some minutes, and say what became of it
	XSWEEP_CHAOS=1 $(BIN)/python -m pytest -q tests/db/test_races.py tests/db/test_outages.py \
	  tests/db/test_recovery.py tests/db/test_machine.py tests/orchestrator/test_recovery.py

rehearsal: $(INSTALLED) ## all 4,080 jobs of the study with tiny models, while things are killed
	$(BIN)/python benchmarks/rehearsal.py

rehearsal-postgresql: $(INSTALLED) ## the same with PostgreSQL, which is killed too
	$(BIN)/python benchmarks/rehearsal.py --database postgresql

# As root, about a quarter of an hour; says so and stops where namespaces are not permitted.
cluster-test: $(INSTALLED) ## three hosts as network namespaces: faults, and what became of the jobs
	$(BIN)/python -m tests.cluster

lint: $(INSTALLED) ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what tests and builds leave (never .venv or .xsweep)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
