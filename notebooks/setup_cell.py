# @title Setup: find or clone the package, install what it needs
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = "{{repository}}"  # @param {type: "string"}

if importlib.util.find_spec("camvid_lang") is None:
    # 1. The package is in this folder, in the one above, or is cloned (once).
    clone = Path.cwd() / "camvid-lang"
    folders = [Path.cwd(), Path.cwd().parent, clone]
    root = next((folder for folder in folders if (folder / "camvid_lang").is_dir()), None)
    if root is None:
        command = ["git", "clone", "-q", "--depth", "1", REPOSITORY, str(clone)]
        if subprocess.run(command, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}).returncode:
            raise SystemExit(f"cannot clone {REPOSITORY}: check the address and the network")
    # 2. pip installs what is missing; torch and numpy stay as they are, they may be in use.
    present = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    pinned = [f"{name}=={version(name)}" for name in present]
    needed = ["{{dependencies}}"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *pinned, *needed], check=True)
    sys.path.insert(0, str(root or clone))
