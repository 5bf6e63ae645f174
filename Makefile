# make run · make test · make check · make faults · make oracle · make bench. Each makes what it needs first, and is quick the second time.
# make test THOROUGH=1 draws many random examples, WORKERS=1 runs the tests in so many processes, COVERAGE=1
# measures what they cover.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := run
ifeq ($(MAKELEVEL),0)
export BEGAN := $(shell date +%s)
export GOAL := $(or $(firstword $(MAKECMDGOALS)),run)
endif

BIN := .venv/bin
WORKERS ?= auto
# With a router of one's own there is no need for another.
ROUTER := $(if $(ROWCAST_ROUTER_URL),,.venv-router/stamp)

# The rules and procedures of the tables that come with the project; yours may take their place.
run: export ROWCAST_APP ?= app
run: export ROWCAST_EXPLAIN ?= true

.PHONY: run test check faults oracle bench lint migrations tests clean .venv .venv-router

run:
	@requirements/install able .venv/stamp $(ROUTER)
	@$(MAKE) -s -j2 .venv/stamp $(ROUTER)
	@exec $(BIN)/python -m service run

test:
	@requirements/install able .venv/stamp .venv-router/stamp
	@$(MAKE) -s -j2 .venv/stamp-dev .venv-router/stamp
	@$(MAKE) tests

check:
	@requirements/install able .venv/stamp .venv-router/stamp
	@$(MAKE) -s -j2 .venv/stamp-dev .venv-router/stamp
	@$(MAKE) lint
	@$(MAKE) migrations
	@$(MAKE) tests COVERAGE=1 THOROUGH=1

# Every fault for longer, with a table at the end: make faults FAULTS="--seed 1 --only 'router: kill -9'"
faults:
	@requirements/install able .venv/stamp .venv-router/stamp
	@$(MAKE) -s -j2 .venv/stamp-dev .venv-router/stamp
	@exec $(BIN)/python -m tests.faults $(FAULTS)

# Live queries against the past for longer: make oracle ORACLE="--seed 1 --comparisons 100000"
oracle:
	@requirements/install able .venv/stamp
	@$(MAKE) -s -j2 .venv/stamp-dev
	@exec $(BIN)/python -m tests.oracle $(ORACLE)

# What calls cost beside an echo at the same router: make bench BENCH="--only get --rounds 5"
bench:
	@requirements/install able .venv/stamp .venv-router/stamp
	@$(MAKE) -s -j2 .venv/stamp-dev .venv-router/stamp
	@exec $(BIN)/python -m bench.calls $(BENCH)

lint:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# On a database of their own: up, nothing to generate, down, up.
migrations: export ROWCAST_STATE = $(CURDIR)/.rowcast/check
migrations:
	@rm -rf $(ROWCAST_STATE)
	unset DATABASE_URL; $(BIN)/alembic upgrade head && $(BIN)/alembic check
	unset DATABASE_URL; $(BIN)/alembic downgrade base && $(BIN)/alembic upgrade head
	@rm -rf $(ROWCAST_STATE)

# Else each process of the tests compiles all of them anew: 9 of the 12 s of CPU that it begins with.
unexport PYTHONDONTWRITEBYTECODE

# On a busy machine of CI a test that fails runs again, with new fixtures; the closing line counts those.
PYTEST = pytest -n $(WORKERS) $(if $(CI),--reruns 2 -r R --rerun-show-tracebacks)

tests:
ifdef COVERAGE
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
else
	@exec $(BIN)/python -m $(PYTEST)
endif

clean: ; rm -rf .venv .venv-router .venv.log .venv-router.log

.venv: .venv/stamp
.venv-router: .venv-router/stamp

.venv/stamp: requirements/service.lock requirements/install setup.cfg
	@requirements/install service .venv requirements/service.lock
	@touch $@

.venv/stamp-dev: .venv/stamp requirements/dev.lock
	@requirements/install checks .venv requirements/dev.lock
	@touch $@

.venv-router/stamp: router/requirements.lock requirements/install
	@requirements/install router .venv-router router/requirements.lock
	@touch $@
