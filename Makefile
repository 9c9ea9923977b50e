# The whole course from one place. Needs python3 (3.11 to 3.14) and make; everything else is installed into .venv.
# `make` alone lists the commands. Windows: the README spells the same commands out.

PYTHON ?= python3
JOBS   ?= 2
BIN    := .venv/bin
FIRST  := notebooks/00_tour.ipynb
CHAPTERS  := $(sort $(wildcard notebooks/[0-9]*.ipynb))
SOLUTIONS := $(sort $(wildcard notebooks/solutions/[0-9]*.ipynb))
EXECUTE   := jupyter nbconvert --to notebook --execute --inplace \
             --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=900
NBVAL     := --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg

.PHONY: help course test portable demo notebooks exercises explorer site clean

help:
	@echo "make course      install, try the small model, open JupyterLab at the first chapter"
	@echo "make demo        let the small model describe a picture, and draw what it says into demo.png"
	@echo "make test        install and run every test and every notebook, outputs compared"
	@echo "make portable    run every notebook as other processors would, with other instructions and thread counts"
	@echo "make notebooks   run every chapter again and save it with its outputs"
	@echo "make exercises   make the exercises from their solutions"
	@echo "make explorer    the small model alive in a page: site/explorer/index.html"
	@echo "make site        the course as static pages in site/"
	@echo "make clean       remove what the commands above made (the environment included)"

# --- environment: a file inside .venv is the stamp that says when the installation is up to date ---------------

# On Linux, PyTorch from PyPI comes with several gigabytes of CUDA libraries. Without an NVIDIA card the CPU build is
# enough: its index is added if it answers. A slow machine or line gets 20 seconds and a second try; the whole question
# takes a minute at most (a network that swallows everything), and no time where there is none. `make course CPU_INDEX=`
# leaves the index out.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
define ASK_INDEX
import sys, threading, urllib.request
answered = []
def ask():
    for _ in range(2):
        try:
            answered.append(urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=20))
            return
        except OSError:
            pass
thread = threading.Thread(target=ask, daemon=True)
thread.start()
thread.join(60)
sys.exit(not answered)
endef
export ASK_INDEX
define INDEX
index=; if [ -n "$(CPU_INDEX)" ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
  if $(BIN)/python -c "$$ASK_INDEX" $(CPU_INDEX); then index="--extra-index-url $(CPU_INDEX)"; \
  else echo "$(CPU_INDEX) does not answer: without it PyTorch brings its CUDA libraries, 5.5 GB in all"; fi; fi
endef
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
SAY     := echo "Installing into .venv: a few minutes, 2 GB of disk (5.5 GB with CUDA). pip says what it is doing:"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "This course needs Python 3.11 to 3.14; '$(PYTHON)' is missing, older or newer. Try: make course PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "Making a virtual environment failed. On Debian and Ubuntu it needs a package: sudo apt install python3-venv"; exit 1; }

.venv/.course: pyproject.toml constraints.txt | $(BIN)/python
	@$(SAY)
	@$(INDEX); set -x; $(INSTALL) $$index --editable .
	@touch $@

.venv/.test: pyproject.toml constraints.txt | $(BIN)/python
	@$(SAY)
	@$(INDEX); set -x; $(INSTALL) $$index --editable '.[dev,teach,site]'
	@touch $@ .venv/.course

# --- commands --------------------------------------------------------------------------------------------------

# JupyterLab's root is this folder, so that the links from a chapter to docs/, assets/ and paligemma/ lead somewhere.
# Jupyter refuses to run as root (in a container, say) unless told to.
course: demo
	$(BIN)/jupyter lab $$(test "$$(id -u)" != 0 || echo --allow-root) --LabApp.default_url=/lab/tree/$(FIRST)

demo: .venv/.course
	$(BIN)/python -m paligemma demo --output demo.png

# The network is off for the models (HF_HUB_OFFLINE); one thread for each of the JOBS workers.
test: .venv/.test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(CHAPTERS) $(SOLUTIONS) $(NBVAL) \
	  -n $(JOBS) --dist loadfile

portable: .venv/.test
	$(BIN)/python tests/portable.py

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
	rm -rf .venv site demo.png .pytest_cache .hypothesis .ruff_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
