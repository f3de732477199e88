# make demo: the whole thesis on drawn scenes -> runs/demo/report.html
# make test: everything that is checked, offline
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint notebooks tiny-clip clean

# glibc keeps freed memory instead of returning it to the kernel after each step, a third of the page
# faults: as mallopt(M_MMAP_MAX, 0) and M_TRIM_THRESHOLD do. Ignored by other C libraries.
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 2147483647
demo: $(INSTALLED)
	$(BIN)/python -m camvid_lang demo --out runs/demo

test: $(INSTALLED) lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python notebooks/generate.py --check

# The .py files are edited, the .ipynb made from them.
notebooks: $(INSTALLED)
	$(BIN)/python notebooks/generate.py

# Trains the tiny CLIP that the package carries anew (minutes); needed only when scenes change.
tiny-clip: $(INSTALLED)
	$(BIN)/python -m camvid_lang.scenes.tiny_clip --out camvid_lang/assets/camvid-tiny.safetensors

$(INSTALLED): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[test]"
	touch $@

clean:
	rm -rf runs build dist *.egg-info
