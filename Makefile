# What is installed goes to .venv (the newest Airflow) and .venvs/ (all others); nothing else is touched.
# `make PYTHON=/path/to/python3.12 …` chooses the Python.

# The supported Airflows are those with a constraints file.
VERSIONS := $(shell ls constraints | sed -n 's/^airflow-\(.*\)\.txt$$/\1/p' | sort -V)
NEWEST := $(lastword $(VERSIONS))
OLDEST := $(firstword $(VERSIONS))
OTHERS := $(filter-out $(NEWEST),$(VERSIONS))

# The UI has a place for the Tracks tab since 3.1.
WITH_TABS := $(filter-out 2.% 3.0.%,$(OTHERS))

# The Pythons that the newest Airflow is tested on beside that of .venv.
PYTHONS := 3.12 3.13
REAL_ON_PYTHON := e2e-py$(lastword $(PYTHONS))

# Airflow starts three to five times faster with its byte code on disk.
unexport PYTHONDONTWRITEBYTECODE
# Python's own: with the two set, one environment would load another one's packages.
unexport PYTHONPATH PYTHONHOME
export PYTHON

BIN := .venv/bin
PIP_INSTALL := -m pip --disable-pip-version-check -qq install
INSTALL_INPUTS := pyproject.toml dev/make_venv.sh dev/find_python.sh

# The suites that need no more than a Python and an Airflow; those of the other markers have environments of their own, or
# take minutes.
PLAIN := not browser and not s3 and not cluster and not dist and not crash and not docs

# What the two parts of the tests cover is added up.
COVERAGE := --cov --cov-report= --cov-fail-under=0

# What differs least between the Airflows that are neither the oldest nor the newest one.
OF_NO_VERSION := $(addprefix --ignore=tests/integration/,campaign hooks ledger) \
	$(addprefix --ignore=tests/integration/operators/test_whisul_,durable.py paid_once.py) \
	--ignore-glob='tests/integration/operators/test_whisul_batch_*.py' --ignore-glob='tests/integration/storage/test_[!a]*.py'

# What test-lowest runs, which is on the oldest one too.
OF_LOWEST := $(addprefix --ignore=tests/integration/,hooks ledger storage)

# Each suite leaves a report of its target's name, which dev/ci_summary.py reads.
REPORTS := reports
PYTEST = -m pytest --junit-xml=$(REPORTS)/$@.xml

# $(call timed,NAME,COMMAND) runs a command and notes the seconds that it took, for the same summary.
timed = @mkdir -p $(REPORTS); start=$$(date +%s); $(2) && printf '%s\t%s\n' '$(1)' $$(($$(date +%s) - start)) >> $(REPORTS)/steps.tsv

# The suites of .ci/run beside those of `make test`, the long ones first. Where its services respond it runs test-cluster
# after them, alone.
SUITES := test-$(OLDEST) test-browser $(filter-out test-$(OLDEST),$(addprefix test-,$(OTHERS))) crash-$(OLDEST) test-lowest \
	$(addprefix test-py,$(PYTHONS)) dist test-s3

# What `.ci/run --all` runs too, each week and before a release: what has never differed from the suites above.
WEEKLY := $(filter-out crash-$(OLDEST),$(addprefix crash-,$(OTHERS))) $(addprefix test-browser-,$(WITH_TABS)) crash-s3 $(REAL_ON_PYTHON)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo airflow test test-quick test-unit test-integration test-campaigns test-e2e test-docs crash crash-s3 crash-all test-all \
	test-others test-lowest test-pythons test-cluster test-s3 test-browser test-browser-all check lint scan dist format docs docs-tables pictures pacing bench \
	bench-storing bench-airflow suites weekly-suites chromium clean \
	$(addprefix test-,$(OTHERS)) $(addprefix crash-,$(OTHERS)) $(addprefix test-py,$(PYTHONS)) \
	$(addprefix test-browser-,$(WITH_TABS)) $(REAL_ON_PYTHON)

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { name[++n] = $$1; text[n] = $$2; if (length($$1) > width) width = length($$1) } \
		END { for (i = 1; i <= n; i++) printf "make %-" width "s  %s\n", name[i], text[i] }' Makefile
	@echo
	@echo 'For one version: make $(foreach version,$(OTHERS),test-$(version)), $(foreach version,$(OTHERS),crash-$(version)), $(foreach python,$(PYTHONS),test-py$(python)), $(foreach version,$(WITH_TABS),test-browser-$(version))'

demo: .venv/installed ## Make songs with a real Airflow and the sandbox (with WHISUL_API_KEY set: at Whisul, which costs)
	$(call timed,demo,$(BIN)/python -m dev.demo)

airflow: .venv/installed ## Run Airflow and the sandbox until Ctrl-C, to use the UI in a browser
	@$(BIN)/python -m dev.airflow_up

check: .venv/installed ## Lint, types and the tests of one source or test file, in seconds: make check FILE=path
	@$(BIN)/python -m dev.check $(FILE)

# A real Airflow mostly waits, so the other tests run beside two of them, in two parts. The `+` shows the progress of one of
# these at once, while the output of the other suites is held back until they have ended.
test: lint ## Lint, types and all tests on the newest Airflow, with coverage (13 minutes)
	@rm -f .coverage .coverage.*
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target LIVE=+ test-integration crash test-e2e test-campaigns test-unit test-docs
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

test-quick: test-unit test-integration test-campaigns ## All tests but those that start a real Airflow

test-unit: .venv/installed ## The tests of single modules
	COVERAGE_FILE=.coverage.unit $(BIN)/python $(PYTEST) -m "$(PLAIN)" $(COVERAGE) tests/unit

test-integration: .venv/installed ## The tests in this process with Airflow, and with a sandbox over HTTP
	$(LIVE)COVERAGE_FILE=.coverage.integration $(BIN)/python $(PYTEST) -m "$(PLAIN)" $(COVERAGE) tests/integration \
		--ignore=tests/integration/campaign

test-campaigns: .venv/installed ## The tests of random faults, in this process with a sandbox over HTTP
	COVERAGE_FILE=.coverage.campaigns $(BIN)/python $(PYTEST) -m "$(PLAIN)" $(COVERAGE) tests/integration/campaign

test-e2e: .venv/installed ## The tests that start a real Airflow, but for the crashes
	$(BIN)/python $(PYTEST) -m "e2e and not crash"

test-docs: .venv/installed ## Run the examples of the documentation
	$(BIN)/python $(PYTEST) -m docs tests/docs

crash: .venv/installed ## Kill the processes of a real Airflow at every point, and count what each song costs
	$(BIN)/python $(PYTEST) -m crash

crash-s3: .venvs/s3/installed ## The same, with the records in S3
	.venvs/s3/bin/python $(PYTEST) -m s3 tests/s3/test_crashes_with_s3.py

crash-all: crash $(addprefix crash-,$(OTHERS)) crash-s3 ## The same on every supported version

$(addprefix crash-,$(OTHERS)): crash-%: .venvs/%/installed
	.venvs/$*/bin/python $(PYTEST) -m crash

test-all: test test-others test-pythons ## The same as test, and what touches Airflow or Python on every supported version

test-others: $(addprefix test-,$(OTHERS)) ## The tests that touch Airflow on every supported version but the newest

# The campaigns of random faults have been played to their end on the newest version.
$(addprefix test-,$(OTHERS)) $(addprefix test-py,$(PYTHONS)) test-lowest: export WHISUL_CAMPAIGN_SEEDS ?= 2

$(addprefix test-,$(OTHERS)): test-%: .venvs/%/installed
	.venvs/$*/bin/python $(PYTEST) -m "airflow and not crash" $(if $(filter $*,$(OLDEST)),$(OF_LOWEST),$(OF_NO_VERSION))

# Lowest are the dependencies that pyproject.toml names, beside the oldest Airflow; all else is as in its constraints.
# The tests of what uses them: the HTTP clients, Redis and the object stores.
test-lowest: .venvs/lowest/installed ## The HTTP clients, Redis and the stores, with the lowest versions that are allowed
	.venvs/lowest/bin/python $(PYTEST) -m "not e2e and $(PLAIN)" $(addprefix tests/integration/,hooks ledger storage triggers) \
		tests/unit/api tests/unit/rate_limit/test_redis_store.py tests/unit/storage

test-pythons: $(addprefix test-py,$(PYTHONS)) ## The tests that do not touch Airflow, on each Python

$(addprefix test-py,$(PYTHONS)): test-py%: .venvs/$(NEWEST)-py%/installed
	.venvs/$(NEWEST)-py$*/bin/python $(PYTEST) -m "not airflow and $(PLAIN)"

$(REAL_ON_PYTHON): e2e-py%: .venvs/$(NEWEST)-py%/installed
	.venvs/$(NEWEST)-py$*/bin/python $(PYTEST) -m "e2e and not crash"

test-browser: .venv/browser chromium ## The Tracks tab in Chromium, on the newest Airflow
	$(BIN)/python $(PYTEST) -m browser

test-browser-all: test-browser $(addprefix test-browser-,$(WITH_TABS)) ## The Tracks tab on every Airflow that has it

# The player and the filters are the page's own: they ask Airflow for nothing. The pictures show the newest Airflow.
$(addprefix test-browser-,$(WITH_TABS)): test-browser-%: .venvs/%/browser chromium
	.venvs/$*/bin/python $(PYTEST) -m browser $(addprefix --ignore=tests/browser/test_,tracks_player.py tracks_filters.py pictures.py)

test-s3: .venvs/s3/installed ## Store songs in S3, with boto, at moto's server
	.venvs/s3/bin/python $(PYTEST) -m s3 --ignore tests/s3/test_crashes_with_s3.py

test-cluster: .venvs/cluster/installed ## Kill workers, triggerers and a Redis on PostgreSQL and Celery, and submit from pods
	.venvs/cluster/bin/python $(PYTEST) -m cluster

lint: .venv/installed ## Check style and types
	$(call timed,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy)

scan: .venv/installed .venvs/scan/installed ## Look for known faults of security in the code and in what it depends on
	@$(BIN)/python -m dev.scan .venvs/scan/bin/pip-audit

# The wheel alone, beside the oldest and the newest Airflow as it comes.
STOCK := $(foreach version,$(OLDEST) $(NEWEST),.venvs/bare-$(version)/installed)

dist: .venv/installed .venvs/dist/installed $(STOCK) ## Build the packages, check them, and run them beside a stock Airflow
	$(call timed,build dist,$(BIN)/python -m dev.dist $(OLDEST) $(NEWEST))
	$(BIN)/python $(PYTEST) -m dist tests/dist

format: .venv/installed ## Format the code, and correct the style where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs docs-tables ## Build the site of the documentation, and check its links and names
	$(call timed,docs,$(BIN)/python -m sphinx -W --keep-going -n -q docs build/docs)
	@echo "The site: file://$(CURDIR)/build/docs/index.html"

docs-tables: .venv/installed ## Write the tables of the documentation from the code, which is a part of that
	@$(BIN)/python -m dev.failure_table
	@$(BIN)/python -m dev.troubleshooting
	@$(BIN)/python -m dev.docs_options

pictures: .venv/browser chromium ## Make the pictures of the documentation, of the newest Airflow in Chromium
	WHISUL_WRITE_PICTURES=1 $(BIN)/python -m pytest -m browser tests/browser/test_pictures.py

pacing: .venv/installed ## Simulate the processes that share a key of unknown limit (some minutes)
	@$(BIN)/python -m benchmarks.pacing

bench: .venv/benchmarks ## Measure what polling costs the triggerer (25 minutes)
	$(BIN)/python -m benchmarks

bench-storing: .venv/installed ## Measure what storing a thousand songs costs (a minute)
	@$(BIN)/python -m benchmarks.storing

bench-airflow: .venv/benchmarks ## Measure what a song costs a real Airflow, made in five ways (45 minutes)
	$(BIN)/python -m benchmarks.worker_cost

suites:
	@echo $(SUITES)

weekly-suites:
	@echo $(WEEKLY)

chromium:
	@dev/get_chromium.sh

clean: ## Remove what was installed and cached
	rm -rf .venv .venvs .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist $(REPORTS) *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: constraints/airflow-$(NEWEST).txt $(INSTALL_INPUTS)
	$(call timed,install .venv,dev/make_venv.sh $(NEWEST) .venv)
	@touch $@

.venvs/bare-%/installed: constraints/airflow-%.txt $(INSTALL_INPUTS)
	$(call timed,install .venvs/bare-$*,BARE=1 dev/make_venv.sh $* .venvs/bare-$*)
	@touch $@

.venvs/%/installed: constraints/airflow-%.txt $(INSTALL_INPUTS)
	$(call timed,install .venvs/$*,dev/make_venv.sh $* .venvs/$*)
	@touch $@

.venvs/$(NEWEST)-py%/installed: constraints/airflow-$(NEWEST).txt $(INSTALL_INPUTS)
	@dev/find_python.sh $* > /dev/null || { echo "There is no Python $* on the PATH or in pyenv." >&2; exit 2; }
	$(call timed,install .venvs/$(NEWEST)-py$*,PYTHON=$$(dev/find_python.sh $*) dev/make_venv.sh $(NEWEST) .venvs/$(NEWEST)-py$*)
	@touch $@

.venvs/cluster/installed: constraints/airflow-$(NEWEST).txt constraints/cluster-$(NEWEST).txt $(INSTALL_INPUTS)
	$(call timed,install .venvs/cluster,dev/make_venv.sh $(NEWEST) .venvs/cluster && .venvs/cluster/bin/python $(PIP_INSTALL) \
		-c constraints/airflow-$(NEWEST).txt -r constraints/cluster-$(NEWEST).txt)
	@touch $@

.venvs/lowest/installed: constraints/lowest-$(OLDEST).txt $(INSTALL_INPUTS)
	$(call timed,install .venvs/lowest,dev/make_venv.sh $(OLDEST) .venvs/lowest constraints/lowest-$(OLDEST).txt)
	@touch $@

# No constraints of Airflow's here: Amazon's provider asks for another version of one of them.
.venvs/s3/installed: constraints/airflow-$(NEWEST).txt constraints/s3-$(NEWEST).txt $(INSTALL_INPUTS)
	$(call timed,install .venvs/s3,dev/make_venv.sh $(NEWEST) .venvs/s3 && .venvs/s3/bin/python $(PIP_INSTALL) \
		-r constraints/s3-$(NEWEST).txt)
	@touch $@

# The newest pip-audit, in an environment of its own: it asks for other versions than Airflow.
.venvs/scan/installed: dev/find_python.sh
	@python=$$(dev/find_python.sh 3.11 || command -v python3) && rm -rf .venvs/scan && "$$python" -m venv .venvs/scan
	.venvs/scan/bin/python $(PIP_INSTALL) pip-audit
	@touch $@

.venvs/dist/installed: constraints/dist.txt dev/find_python.sh
	@python=$$(dev/find_python.sh 3.11 || command -v python3) && rm -rf .venvs/dist && "$$python" -m venv .venvs/dist
	.venvs/dist/bin/python $(PIP_INSTALL) -r constraints/dist.txt
	@touch $@

.venv/benchmarks: .venv/installed benchmarks/requirements.txt
	$(BIN)/python $(PIP_INSTALL) -c constraints/airflow-$(NEWEST).txt -r benchmarks/requirements.txt
	@touch $@

.venv/browser: .venv/installed constraints/browser.txt
	$(BIN)/python $(PIP_INSTALL) -c constraints/airflow-$(NEWEST).txt -r constraints/browser.txt
	@touch $@

.venv/docs: .venv/installed constraints/docs.txt
	$(BIN)/python $(PIP_INSTALL) -c constraints/airflow-$(NEWEST).txt -r constraints/docs.txt
	@touch $@

.venvs/%/browser: .venvs/%/installed constraints/browser.txt
	.venvs/$*/bin/python $(PIP_INSTALL) -c constraints/airflow-$*.txt -r constraints/browser.txt
	@touch $@
