# @title Setup: makes `camvid_lang` importable; torch and numpy stay as they are
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = os.environ.get("CAMVID_LANG_REPOSITORY", "{{repository}}")


def package_folder():
    """The repository's folder: above this notebook, cloned here, or kept on Drive."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "camvid_lang" / "__init__.py").is_file():
            return folder
    clone = here / "camvid-lang"
    if not clone.exists():
        part = here / "camvid-lang.part"  # a clone that broke off is no clone
        shutil.rmtree(part, ignore_errors=True)
        command = ["git", "clone", "-q", "--depth", "1", REPOSITORY, str(part)]
        # Without a prompt: an address that is not there would be answered with a question.
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run(command, check=False, env=environment, stderr=subprocess.DEVNULL)
        if done.returncode == 0:
            part.rename(clone)
    drive = here / "drive" / "MyDrive" / "camvid-lang-code"
    for folder in (clone, drive):
        if (folder / "camvid_lang" / "__init__.py").is_file():
            return folder
    raise SystemExit(
        f"camvid_lang was not found and {REPOSITORY} cannot be cloned: copy the repository to "
        "My Drive/camvid-lang-code, mount Drive (from google.colab import drive; "
        f"drive.mount('{here / 'drive'}')), and run this cell again"
    )


if importlib.util.find_spec("camvid_lang") is None:
    sys.path.insert(0, str(package_folder()))

# Colab has all but the first three; a kernel elsewhere may have nothing yet.
needed = {
    "open_clip": "{{open-clip-torch}}",
    "torchmetrics": "{{torchmetrics}}",
    "gdown": "{{gdown}}",
    "torch": "{{torch}}",
    "numpy": "{{numpy}}",
    "PIL": "{{pillow}}",
    "tqdm": "{{tqdm}}",
    "matplotlib": "{{matplotlib}}",
    "ipywidgets": "{{ipywidgets}}",
}
missing = [what for module, what in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    # The constraints keep pip from touching what is already loaded.
    here = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    keep = Path(tempfile.mkdtemp()) / "constraints.txt"
    keep.write_text("".join(f"{name}=={version(name)}\n" for name in here))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-c", str(keep), *missing], check=True
    )
