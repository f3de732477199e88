#!/bin/sh
# Puts CamVid into a folder, every picture checked: sh data_download.sh [DEST]
# Other sources and options: sh data_download.sh --help. Python: $PYTHON, else .venv, else python3.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
needs='import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in ("PIL", "numpy", "tqdm")))'
for python in ${PYTHON:+"$PYTHON"} "$here/.venv/bin/python" python3 python; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -c "$needs" 2>/dev/null; then
        # The caller's folder stays the working folder, so that a relative DEST means what it says.
        PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m camvid_lang.data.download "$@"
    fi
done
echo "error: no Python with Pillow, numpy and tqdm; run 'pip install $here' or set PYTHON" >&2
exit 1
