# @title Setup: find or clone the package, install what it needs
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = "{{repository}}"  # @param {type: "string"}
REF = "{{ref}}"  # @param {type: "string"}

if importlib.util.find_spec("camvid_lang") is None:
    # 1. The package is in this folder, in the one above (VS Code: of the notebook), or is cloned.
    clone = Path.cwd() / "camvid-lang"
    nearby = Path(globals().get("__vsc_ipynb_file__", Path.cwd() / "notebook")).parents[:2]
    folders = [Path.cwd(), Path.cwd().parent, *nearby, clone]
    root = next((folder for folder in folders if (folder / "camvid_lang").is_dir()), None)
    if root is None:
        command = ["git", "clone", "-q", "--depth", "1", "--branch", REF, REPOSITORY, str(clone)]
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        if not shutil.which("git") or subprocess.run(command, env=environment).returncode:
            raise SystemExit(
                f"cannot clone REPOSITORY {REPOSITORY}, REF {REF}: check both fields, the network "
                "(Kaggle: turn on Internet in the settings) and that git is installed"
            )
    # 2. pip installs what is missing; torch and numpy stay as they are, they may be in use.
    present = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    pinned = [f"{name}=={version(name)}" for name in present]
    needed = ["{{dependencies}}"]
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", *pinned, *needed]).returncode:
        raise SystemExit("pip cannot install what is needed (see above): check the network")
    sys.path.insert(0, str(root or clone))
