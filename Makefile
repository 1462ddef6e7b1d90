# What is installed goes to .venv (the newest Airflow) and .venvs/<version> (the others); nothing else is touched.
# `make PYTHON=/path/to/python3.12 …` chooses the Python.

# The supported Airflows are those with a constraints file.
VERSIONS := $(shell ls constraints | sed -n 's/^airflow-\(.*\)\.txt$$/\1/p' | sort -V)
NEWEST := $(lastword $(VERSIONS))
OTHERS := $(filter-out $(NEWEST),$(VERSIONS))

# Airflow starts three to five times faster with its byte code on disk.
unexport PYTHONDONTWRITEBYTECODE
# Python's own: with the two set, one environment would load another one's packages.
unexport PYTHONPATH PYTHONHOME

# The UI has a place for the Tracks tab since 3.1.
WITH_TABS := $(filter-out 2.% 3.0.%,$(OTHERS))

BIN := .venv/bin
INSTALL_INPUTS := pyproject.toml dev/make_venv.sh
export PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo airflow test test-all test-others test-cluster test-s3 test-browser test-browser-all lint docs pacing bench bench-airflow clean $(addprefix test-,$(OTHERS)) $(addprefix test-browser-,$(WITH_TABS))

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

demo: .venv/installed ## Make songs with a real Airflow and the sandbox (with WHISUL_API_KEY set: for real, which costs)
	@$(BIN)/python -m dev.demo

airflow: .venv/installed ## Keep Airflow and the sandbox up, to look at in the browser
	@$(BIN)/python -m dev.airflow_up

test: lint ## Run the whole suite on the newest Airflow, with coverage
	$(BIN)/python -m pytest --cov --cov-report=term

test-all: test test-others ## Run the suite on every supported Airflow

test-others: $(addprefix test-,$(OTHERS))

$(addprefix test-,$(OTHERS)): test-%: .venvs/%/installed
	.venvs/$*/bin/python -m pytest

test-cluster: .venvs/cluster/installed ## Kill a worker and a triggerer of two each, with PostgreSQL, Celery and Redis
	.venvs/cluster/bin/python -m pytest tests/cluster/night.py

test-s3: .venvs/s3/installed ## Land songs in S3, with boto, against moto's server
	.venvs/s3/bin/python -m pytest tests/s3/landing.py

test-browser: .venv/browser ## Look at the Tracks tab in a browser, on the newest Airflow
	@dev/get_chromium.sh
	$(BIN)/python -m pytest tests/browser/tracks.py

test-browser-all: test-browser $(addprefix test-browser-,$(WITH_TABS)) ## Look at it on every Airflow that has it

$(addprefix test-browser-,$(WITH_TABS)): test-browser-%: .venvs/%/browser
	@dev/get_chromium.sh
	.venvs/$*/bin/python -m pytest tests/browser/tracks.py

lint: .venv/installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed ## Write the tables of the documentation from the code
	$(BIN)/python -m dev.failure_table

pacing: .venv/installed ## Simulate the pace of many jobs on one key whose limit nobody knows (a minute)
	@$(BIN)/python -m benchmarks.pacing

bench: .venv/benchmarks ## Measure what polling costs the triggerer (25 minutes)
	$(BIN)/python -m benchmarks

bench-airflow: .venv/benchmarks ## Measure what a song costs a real Airflow, made in five ways (40 minutes)
	$(BIN)/python -m benchmarks.worker_cost

clean: ## Remove what was installed and cached
	rm -rf .venv .venvs .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: constraints/airflow-$(NEWEST).txt $(INSTALL_INPUTS)
	@dev/make_venv.sh $(NEWEST) .venv
	@touch $@

.venvs/%/installed: constraints/airflow-%.txt $(INSTALL_INPUTS)
	@dev/make_venv.sh $* .venvs/$*
	@touch $@

.venvs/cluster/installed: constraints/airflow-$(NEWEST).txt constraints/cluster-$(NEWEST).txt $(INSTALL_INPUTS)
	@dev/make_venv.sh $(NEWEST) .venvs/cluster
	@.venvs/cluster/bin/python -m pip --disable-pip-version-check -qq install \
		-c constraints/airflow-$(NEWEST).txt -r constraints/cluster-$(NEWEST).txt
	@touch $@

# No constraints of Airflow's here: Amazon's provider asks for another version of one of them.
.venvs/s3/installed: constraints/airflow-$(NEWEST).txt constraints/s3-$(NEWEST).txt $(INSTALL_INPUTS)
	@dev/make_venv.sh $(NEWEST) .venvs/s3
	@.venvs/s3/bin/python -m pip --disable-pip-version-check -qq install -r constraints/s3-$(NEWEST).txt
	@touch $@

.venv/benchmarks: .venv/installed benchmarks/requirements.txt
	$(BIN)/python -m pip --disable-pip-version-check -qq install -c constraints/airflow-$(NEWEST).txt -r benchmarks/requirements.txt
	@touch $@

.venv/browser: .venv/installed constraints/browser.txt
	$(BIN)/python -m pip --disable-pip-version-check -qq install -c constraints/airflow-$(NEWEST).txt -r constraints/browser.txt
	@touch $@

.venvs/%/browser: .venvs/%/installed constraints/browser.txt
	.venvs/$*/bin/python -m pip --disable-pip-version-check -qq install -c constraints/airflow-$*.txt -r constraints/browser.txt
	@touch $@
