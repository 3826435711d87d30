# make install | demo | own-benchmark | gpu | test | test-all | lint | lock | clean
#   PYTHON=python3.12   picks another Python
#   LATEST=1, LOWEST=1  instead of the locked versions the newest that requirements.txt and
#                       pyproject.toml allow, or the oldest; each has a virtual environment of its own
PYTHON ?= python3
ifdef LATEST
VENV   ?= .venv-latest
else ifdef LOWEST
VENV   ?= .venv-lowest
else
VENV   ?= .venv
endif
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip install --disable-pip-version-check
DEMO   ?= weights/demo
OWN    ?= weights/own_benchmark
BETTY  := betty-ml==0.2.1

# uv resolves the lock and the oldest versions; pip installs what it has found.
UV_VENV := .venv-uv
COMPILE := $(UV_VENV)/bin/uv pip compile --quiet --no-python-downloads --no-emit-index-url \
	--no-header pyproject.toml --extra dev

# Workers with one thread each: the models are small, and a worker takes about 2 GB.
PYTEST := $(RUN) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal
ifdef LATEST
PYTEST += --fail-on-deprecated
endif

.PHONY: install demo own-benchmark gpu test test-all lint lock clean

install: $(VENV)/installed

# A resolved list is complete: pip needs no other package (--no-deps), and can ignore the versions of
# Python that packages claim to support, because Betty's claim is wrong.
INSTALL_LIST := --no-deps --ignore-requires-python --requirement

ifdef LATEST
.PHONY: $(VENV)/installed  # the newest of today
endif
$(VENV)/installed: pyproject.toml requirements.txt requirements.lock
	$(PYTHON) -m venv $(VENV)
ifdef LATEST
	$(PIP) --upgrade --upgrade-strategy eager --editable ".[dev]"
	$(PIP) --no-deps --ignore-requires-python $(BETTY)
else ifdef LOWEST
	$(MAKE) $(UV_VENV)/bin/uv
	$(COMPILE) --resolution lowest-direct --python $(RUN) --output-file $(VENV)/oldest.txt
	$(PIP) $(INSTALL_LIST) $(VENV)/oldest.txt
else
	$(PIP) $(INSTALL_LIST) requirements.lock --require-hashes
endif
	touch $@

# One list for Python 3.10 to 3.13 and all platforms, with the hash of every file.
lock: $(UV_VENV)/bin/uv
	$(COMPILE) --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--output-file requirements.lock

$(UV_VENV)/bin/uv:
	$(PYTHON) -m venv $(UV_VENV)
	$(UV_VENV)/bin/python -m pip install --disable-pip-version-check uv

# Training, best of N and figures of one seed of the experiment, with fewer steps. Prints every
# command. The figures go beside the weights; the README shows those in figs/.
demo: install
	rm -rf $(DEMO)
	$(RUN) -m benchmarks.demo --work $(DEMO)

# From questions to a reward model: chains, labels, training, best of N. Prints every command.
own-benchmark: install
	rm -rf $(OWN)
	$(RUN) -m benchmarks.own_benchmark --work $(OWN)

# Correctness, speed and memory on a GPU against the bars, part by part.
gpu: install
	$(RUN) -m benchmarks.gpu

# Linting is about the code, not the libraries: other versions of ruff and mypy report other things.
CHECKS := install $(if $(LATEST)$(LOWEST),,lint)

test: $(CHECKS)
	$(PYTEST) -m "not slow and not gpu"

test-all: $(CHECKS)
	$(PYTEST)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf .venv .venv-latest .venv-lowest $(UV_VENV) $(VENV) $(DEMO) $(OWN)
