# `make test` and `make demo` need only Python 3.10 or newer, pip and make: what they run is installed into .venv and
# .comfyui, here, once. COMFYUI_PATH=<checkout> uses a ComfyUI of your own (PYTHON=<its python> names its environment).

PYTHON ?= python3
RUN = $(PYTHON) tests/support/host/provision.py
# Two processes of one thread: the tests' networks are too small for a thread to wait for another.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -ra --durations 20 --timeout 900 -n 2 --dist loadscope --no-loadscope-reorder
OLDEST = 0.16.3
DAILY = not slow and not long

.PHONY: test test-all test-unit test-model test-server test-browser test-hosted test-hosted-all test-oldest test-oldest-all
.PHONY: test-slow lint demo toy world evidence bench golden locales workflows thumbnails clean

# Some 17 minutes on two cores, installation apart. What it leaves out runs in `make test-all`.
test: test-unit test-hosted test-oldest

test-all: test-unit test-hosted-all test-oldest-all test-slow

test-unit:
	$(PYTEST) -m "unit and $(DAILY)"

test-hosted:
	$(PYTEST) -m "(model or server or browser) and $(DAILY)"

test-hosted-all:
	$(PYTEST) -m "(model or server or browser) and not slow"

test-model:
	$(PYTEST) -m "model and $(DAILY)"

test-server:
	$(PYTEST) -m "server and $(DAILY)"

test-browser:
	$(PYTEST) -m "browser and $(DAILY)"

# The same environment, the oldest ComfyUI that pyproject.toml promises. A ComfyUI of your own is tested once, above.
test-oldest:
ifndef COMFYUI_PATH
	COMFYUI_VERSION=$(OLDEST) $(PYTEST) -m "(model or server) and compat and not newest and $(DAILY)"
endif

test-oldest-all:
ifndef COMFYUI_PATH
	COMFYUI_VERSION=$(OLDEST) $(PYTEST) -m "(model or server) and not newest and not slow"
endif

# Long runs; what stands for SD2.1 unCLIP, Stable Cascade and SDXL takes 5.6 GB of disk, once, and a server of several GB of memory.
test-slow:
	$(PYTEST) -n 1 -m slow

lint:
	PYTHONPATH=tests $(RUN) -m support.lint

# `make demo CHECKPOINT=<file> PHOTO=<file> PROMPT="..." SOURCE="..."` edits a picture of your own with a checkpoint of
# your own; make hands such variables on in the environment.
demo:
	PYTHONPATH=tests $(RUN) -m lab.demo

# Trains the toy models, and goes on where it was stopped. On two CPU cores it takes 3.5 hours, which is too little for things one
# recognises (docs/toy.md); on CUDA steps are more and larger. PART=autoencoder, general, transformer, expert, subject, clip, prior,
# decoder or upsamplers: one alone. `make evidence PART=toy` judges samples.
toy:
	PYTHONPATH=tests $(RUN) -m lab.world.train $(PART)

# What the toy world looks like and how well its judge reads it: docs/world.webp, docs/judge.md. PART=sheet or judge: one alone.
world:
	PYTHONPATH=tests $(RUN) -m lab.world $(PART)

# Rewrite the tables and pictures of docs/ that are measured on the toy models, or PART=<a page's name> alone.
evidence:
	$(RUN) tests/lab/evidence $(PART)

bench:
	$(RUN) tests/lab/benchmarks/run.py $(PART)

# Rewrite tests/server/object_info.json after a change of the nodes' sockets that is meant.
golden:
	PYTHONPATH=tests $(RUN) -m support.host.golden

# Rewrite locales/en from the recorded nodes, and drop translations of what has changed; then translate what it says is missing.
locales:
	PYTHONPATH=tests $(RUN) -m support.locales

# Rewrite example_workflows/*.json and subgraphs/ in the real frontend after a change of tests/workflows or of the nodes.
workflows:
	PYTHONPATH=tests $(RUN) -m workflows

# Rewrite example_workflows/*.jpg, what each shipped workflow makes of the toy's pictures, and its nodes' pictures in js/docs.
# ONLY="Swap a word" chooses by name.
thumbnails:
	PYTHONPATH=tests $(RUN) -m lab.thumbnails

clean:
	rm -rf .venv .comfyui demo_output bench_output
