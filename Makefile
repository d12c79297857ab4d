# `make demo` and `make test` work on a fresh machine with Python 3.11+, git, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo quickstart sweep test test-fast chaos cluster-test slurm-test image-test rehearsal rehearsal-postgresql lint ruff site clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

# Stamp file: reinstall only when the pins or the project file change.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (about 1.5 GB; torch is the largest part)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED) ## run a small sweep: 3 trainings, their evaluations, the report
	@$(MAKE) --no-print-directory sweep NAME=demo

quickstart: $(INSTALLED) ## run a larger one: 8 trainings with six objectives
	@$(MAKE) --no-print-directory sweep NAME=quickstart

sweep:
	@echo "== submitting sweeps/$(NAME).yaml"
	$(BIN)/xsweep submit sweeps/$(NAME).yaml --no-start
	@echo "== running the missing jobs (results stay in .xsweep/)"
	$(BIN)/xsweep run
	@mkdir -p reports
	@for format in latex:tex markdown:md text:txt; do \
	  $(BIN)/xsweep report $(NAME) --measure nDCG@10 --measure RR@10 \
	    --format $${format%:*} --output reports/$(NAME).$${format#*:} || exit 1; done
	@cat reports/$(NAME).txt

# Slow tests wait for processes: three lanes keep two cores busy. Mypy runs beside them.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
test: $(INSTALLED) ruff ## run the linters and the whole test suite
	@$(BIN)/mypy >.mypy.log 2>&1 & mypy=$$!; \
	$(PYTEST) --numprocesses 3 --durations=15; tests=$$?; \
	wait $$mypy || { cat .mypy.log; exit 1; }; exit $$tests

test-fast: $(INSTALLED) ## run the tests that start no cluster, server or program
	$(PYTEST) --numprocesses 2 -q -m "not slow"

site: $(INSTALLED) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html, or run: $(BIN)/python -m mkdocs serve"

# About eleven minutes; each test has its own time limit.
chaos: $(INSTALLED) ## fault tests: kill, stop and disconnect processes; report what happened
	XSWEEP_CHAOS=1 $(BIN)/python -m pytest -q tests/db/test_claim_races.py tests/db/test_transaction_outages.py \
	  tests/db/test_controllers_recover.py tests/db/test_jobs_state_machine.py tests/orchestrator/runtime/test_controller_recovery.py

rehearsal: $(INSTALLED) ## run all 4,080 jobs of the study with tiny models while killing processes
	$(BIN)/python benchmarks/rehearsal.py

rehearsal-postgresql: $(INSTALLED) ## the same on PostgreSQL, whose server is killed too
	$(BIN)/python benchmarks/rehearsal.py --database postgresql

# Needs root; about 15 minutes. Stops with a message where namespaces are not permitted.
cluster-test: $(INSTALLED) ## inject faults into three hosts made of network namespaces
	$(BIN)/python -m tests.cluster

# Needs root and Debian's slurmctld, slurmd, slurm-client and munge; about five minutes.
slurm-test: $(INSTALLED) ## run docker/slurm.sh under a real Slurm of two nodes
	$(BIN)/python -m tests.cluster.slurm

# Needs root, Debian's buildah, podman, runc, debootstrap, netavark and aardvark-dns, podman-compose
# of PyPI, and 12 GB in the temporary folder; about ten minutes.
image-test: $(INSTALLED) ## build the image and run the demo as docker/compose.yaml describes
	$(BIN)/python -m tests.cluster.image

lint: $(INSTALLED) ruff ## run ruff and mypy
	$(BIN)/mypy

ruff: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove caches and build output (keeps .venv and .xsweep)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .mypy.log .hypothesis build *.egg-info
