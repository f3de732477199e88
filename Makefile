# make demo: four rows of the thesis on drawn scenes, six minutes -> runs/demo/report.html
# make demo-all: all nine, 20 minutes -> runs/demo-all/report.html
# make test: all checks, offline
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# A training step frees and takes hundreds of large blocks. glibc would return each to the kernel,
# which zeroes it anew; kept for reuse, a SwiftNet step of 12 crops took 1.7 s instead of 2.4 s.
demo demo-all test: export MALLOC_MMAP_MAX_ = 0
demo demo-all test: export MALLOC_TRIM_THRESHOLD_ = 2147483647

.PHONY: demo demo-all test test-lowest lint notebooks outputs tiny-clip clean

demo: $(INSTALLED)
	$(BIN)/python -m camvid_lang demo --out runs/demo

demo-all: $(INSTALLED)
	$(BIN)/python -m camvid_lang demo --all --out runs/demo-all

test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --maxschedchunk 1

# The fast tests with the lowest versions that pyproject.toml allows (several GB).
test-lowest: LOWEST := .venv-lowest/bin/python
test-lowest:
	test -x $(LOWEST) || $(PYTHON) -m venv .venv-lowest
	sed -n '/^dependencies/,/^]/s/^ *"\(.*\)>=\([^,"]*\).*/\1==\2/p' pyproject.toml > .venv-lowest/pins.txt
	$(LOWEST) -m pip install --disable-pip-version-check -q -c .venv-lowest/pins.txt -e ".[test]"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LOWEST) -m pytest -n 2 -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python notebooks/generate.py --check

# Edit the .py files; the .ipynb files are generated from them. Outputs take a quarter of an hour.
notebooks: $(INSTALLED)
	$(BIN)/python notebooks/generate.py

outputs: $(INSTALLED)
	$(BIN)/python notebooks/generate.py --outputs

# Trains the tiny CLIP that the package carries again (an hour); only needed when scenes change.
tiny-clip: $(INSTALLED)
	$(BIN)/python scripts/tiny_clip.py --out camvid_lang/assets/camvid-tiny.safetensors

$(INSTALLED): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[test]"
	touch $@

clean:
	rm -rf runs build dist *.egg-info
