# Everything starts here: `make help`. It needs make and Python 3.11 to 3.14, and sets up the rest in .venv.
# Options: PYTHON=python3.13 chooses the Python, BROKER=amqp the demo's broker, ARGS='-k name' goes to pytest.

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-faults check format bench lock recording clean

WORKERS ?= 2
PYTEST = .venv/bin/python -m pytest -n $(WORKERS) --dist worksteal
SERVERS = rabbitmq-server redis-server postgresql prometheus

# The first Python that will do; some in PATH are too old, and some are only pyenv's word that there is none.
define set_up
@found=; for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; \
    then found=$$python; break; fi; \
done; \
if [ -z "$$found" ]; then \
    echo "Callboard needs Python 3.11, 3.12, 3.13 or 3.14, and found none as:" \
        "$(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)." >&2; \
    echo "Install one, or name it: make $@ PYTHON=/path/to/python3" >&2; exit 1; \
fi; \
"$$found" -I deploy/bootstrap.py
endef

# BullMQ for `make bench`, from its lock file; where that can't be had, the others are measured without it.
define bullmq
cd benchmarks/bullmq; \
if ! command -v npm >/dev/null; then \
    echo "BullMQ is left out: npm isn't installed (on Debian and Ubuntu: sudo apt-get install nodejs npm)."; \
elif [ ! node_modules/.package-lock.json -nt package-lock.json ]; then \
    npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error || echo "BullMQ is left out."; \
fi
endef

help: ## say what can be made
	@echo "Callboard: background jobs that are never lost and never hidden."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-17s %s\n", $$1, $$2 }'

demo: ## watch jobs run, fail, survive a kill -9 and finish; BROKER=amqp: on RabbitMQ
	$(set_up) demo $(if $(filter amqp,$(BROKER)),rabbitmq-server)
	@.venv/bin/callboard demo $(if $(BROKER),--broker $(BROKER)) $(ARGS)

test: ## run the tests, but for the slow ones
	$(set_up) test $(SERVERS)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: ## run all tests, the slow ones too
	$(set_up) test $(SERVERS)
	$(PYTEST) $(ARGS)

test-faults: ## random faults for ten minutes, and the ledger of it; ARGS='--minutes 60 --only redis --seed 1'
	$(set_up) test $(SERVERS)
	.venv/bin/python -m tests.faults.soak $(ARGS)

check: ## lint, format, types, imports, dependencies, payloads; what CI runs, with the tests
	$(set_up) check
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/deptry .
	.venv/bin/callboard schemas --check deploy/schemas.json

format: ## format the code, and mend what ruff can mend
	$(set_up) check
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: ## measure Callboard beside its peers; ARGS=--quick: in three minutes, ARGS=--write: for docs/performance.md
	$(set_up) bench rabbitmq-server redis-server
	@$(bullmq)
	.venv/bin/python -m benchmarks $(ARGS)

lock: ## pin what pyproject.toml asks for in deploy/locks; UPGRADE=1: at the newest versions
	$(set_up) demo
	.venv/bin/python -m deploy.lock

recording: ## record the demo anew, as docs/demo.svg
	$(set_up) demo
	.venv/bin/python -m deploy.recording

clean: ## remove what was made here: .venv and the caches
	rm -rf .venv .venv.old .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
