# The whole course from one place. Needs python3 (3.11 or later) and make; everything else is installed into .venv.
# `make` alone lists the commands. Windows: the README spells the same commands out.

PYTHON ?= python3
JOBS   ?= 2
BIN    := .venv/bin
FIRST  := $(firstword $(sort $(wildcard notebooks/[0-9]*.ipynb)))
CHAPTERS  := $(sort $(wildcard notebooks/[0-9]*.ipynb))
SOLUTIONS := $(sort $(wildcard notebooks/solutions/[0-9]*.ipynb))
EXECUTE   := jupyter nbconvert --to notebook --execute --inplace \
             --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=900

.PHONY: help course test demo notebooks exercises explorer site clean

help:
	@echo "make course      install, try the small model, open JupyterLab at the first chapter"
	@echo "make demo        let the small model describe a picture, and draw what it says into demo.png"
	@echo "make test        install and run every test and every notebook, outputs compared"
	@echo "make notebooks   run every chapter again and save it with its outputs"
	@echo "make exercises   make the exercises from their solutions"
	@echo "make explorer    the small model alive in a page: site/explorer/index.html"
	@echo "make site        the course as static pages in site/"
	@echo "make clean       remove what the commands above made (the environment included)"

# --- environment: a file inside .venv is the stamp that says when the installation is up to date ---------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "This course needs Python 3.11 or later; '$(PYTHON)' is older or missing. Try: make course PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "Making a virtual environment failed. On Debian and Ubuntu it needs a package: sudo apt install python3-venv"; exit 1; }

.venv/.course: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,teach,site]'
	@touch $@ .venv/.course

# --- commands --------------------------------------------------------------------------------------------------

course: .venv/.course
	$(BIN)/python -m paligemma demo --output demo.png
	$(BIN)/jupyter lab $(FIRST)

demo: .venv/.course
	$(BIN)/python -m paligemma demo --output demo.png

# The network is off for the models (HF_HUB_OFFLINE); one thread for each of the JOBS workers.
test: .venv/.test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(CHAPTERS) $(SOLUTIONS) \
	  --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg \
	  -n $(JOBS) --dist loadfile

notebooks: .venv/.test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/$(EXECUTE) $(CHAPTERS)
	$(BIN)/python docs/clean_notebooks.py $(CHAPTERS)

exercises: .venv/.test
	$(BIN)/python -m paligemma.exercises make

explorer: .venv/.course
	$(BIN)/python -m paligemma explore

site: .venv/.test
	$(BIN)/python docs/build.py

clean:
	rm -rf .venv site docs/_build docs/notebooks docs/figures docs/figures.md demo.png .pytest_cache .hypothesis .ruff_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
