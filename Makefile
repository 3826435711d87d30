# make install | demo | own-benchmark | test | test-all | lint | clean      PYTHON=python3.12 picks another Python
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
DEMO   ?= weights/demo
OWN    ?= weights/own_benchmark

.PHONY: install demo own-benchmark test test-all lint clean

install: $(VENV)/installed

# Betty's metadata refuses Python 3.11 and later, on which it runs. dashscope is installed for one
# file only: it carries the real Qwen vocabulary, with which the prompts are tested.
$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(RUN) -m pip install --disable-pip-version-check --no-deps --ignore-requires-python betty-ml==0.2.1
	-$(RUN) -m pip install --disable-pip-version-check --no-deps dashscope
	touch $@

# One seed of the experiment, with fewer steps. The figures of a new run go beside its weights;
# those in figs/ are the ones the README shows.
demo: install
	rm -rf $(DEMO)
	$(RUN) -m benchmarks.small_world --seeds 1 --variants vanilla reweighted --iterations 300 \
		--skip_blank --work $(DEMO) --figure $(DEMO)/figures/small_world.png
	$(RUN) -m reweighting.figures --weights_path $(DEMO)/reweighted_seed1 \
		--output_dir $(DEMO)/figures

# From questions to a reward model: chains, labels, training, best of N; prints every command.
own-benchmark: install
	rm -rf $(OWN)
	$(RUN) -m benchmarks.own_benchmark --work $(OWN)

test: install lint
	$(RUN) -m pytest -m "not slow and not gpu"

test-all: install lint
	$(RUN) -m pytest

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) $(DEMO) $(OWN)
