# Everything from a bare checkout; needs Python 3.11 or later, and nothing else.
VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test check cover chaos chaos-real fuzz clean

demo: $(READY)  ## make pictures, serve them from two servers, train on them
	$(VENV)/bin/feedmill demo

test: $(READY)  ## the whole test suite
	$(PY) -m pytest

check: $(READY)  ## what CI checks besides the tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/shellcheck .ci/run docker/keygen docker/with-keys docker/slurm/*.sbatch
	$(VENV)/bin/hadolint docker/Dockerfile tests/compose/prometheus.Dockerfile
	! docker compose version >/dev/null 2>&1 || docker compose --profile '*' config --quiet

cover: $(READY)  ## the protocol, by its own tests, every branch
	$(PY) -m pytest tests/protocol -q --cov=feedmill_protocol --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered

chaos-real: $(READY)  ## 1,000 faults of real processes under two trainers: a quarter of an hour; CHAOS="--seconds 300" for less
	cd tests && $(abspath $(PY)) -m faults.chaos --kills 1000 --batches 100000 --every 0.2 --step 0.002 $(CHAOS)

fuzz: $(READY)  ## a million mutated messages each way, and mutated shards and configurations: ten minutes
	cd tests && $(abspath $(PY)) -m fuzz $(FUZZ)

SEEDS := 100000
chaos: $(READY)  ## more worlds that go wrong on purpose than CI has time for: make chaos SEEDS=100000
	PYTHONPATH=tests $(PY) -m simulation --seeds 0..$(SEEDS)

$(READY): pyproject.toml
	@python3 -c 'import sys; sys.version_info >= (3, 11) or sys.exit("feedmill needs Python 3.11 or later; this is " + sys.version)'
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
