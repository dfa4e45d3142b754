# make demo: install, train a small model on this machine, measure it, ask it.   make test: lint, types and tests.
# Types are checked beside the tests, which keep one core busy each; a file's tests share what the file sets up.
# make data: fetch the public text that configs/ name.   make docs: the site of the documents, in site/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# A strict editable install is a folder of links, which type checkers can follow: anew when a file comes or goes.
FOLDERS := checkpoints $(shell find configs models inference training -type d -not -name __pycache__)

# Compiled modules are kept, whatever the environment says: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo data test docs format clean

demo: $(INSTALLED)
	$(BIN)/mull train --config configs/demo.yaml
	$(BIN)/mull evaluate checkpoints/demo --iterations 1,4,8,16,32,64,128,256 --difficulty 32,64,128,256 --examples 64 \
		--output checkpoints/demo
	$(BIN)/mull generate checkpoints/demo --prompt "1 0 1 0 0 1 0 1 1 0 1 1 1 1 1 0 1 1 0 0" --iterations 1
	$(BIN)/mull generate checkpoints/demo --prompt "1 0 1 0 0 1 0 1 1 0 1 1 1 1 1 0 1 1 0 0" --iterations 32
	@echo "twelve ones: even is right"
	@echo "the picture: checkpoints/demo/evaluation.png"

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p mull & types=$$!; \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
		wait $$types && exit $$tests

data: $(INSTALLED)
	$(BIN)/mull data all

# Warnings are errors. To search it, serve it: .venv/bin/python -m http.server --directory site
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site: site/index.html"

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and from the constraints, so that nothing else pulls another build of it.
$(INSTALLED): pyproject.toml constraints.txt $(FOLDERS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt torch
	rm -rf build
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]" --config-settings editable_mode=strict
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build site *.egg-info
