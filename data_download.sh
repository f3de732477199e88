#!/bin/sh
# Download CamVid into a folder, every pixel checked: sh data_download.sh [DIR]
# Other sources: sh data_download.sh --help. Python: $PYTHON, else .venv, else python3.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
needs='import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in ("PIL", "torch", "tqdm")))'
[ $# -gt 0 ] || set -- data/camvid
for python in ${PYTHON:+"$PYTHON"} "$here/.venv/bin/python" python3 python; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -c "$needs" 2>/dev/null; then
        # The working folder stays the caller's: DIR may be relative.
        PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" \
            exec "$python" -m camvid_lang data download "$@"
    fi
done
echo "error: no Python with Pillow, torch and tqdm; run 'pip install $here' or set PYTHON" >&2
exit 1
