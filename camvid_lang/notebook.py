"""What the six notebooks share: a session with data and runs, live curves, and the panel of 06."""

import hashlib
import html
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from PIL import Image
from traitlets import Bunch

from camvid_lang.data.camvid import Frames, load_camvid
from camvid_lang.data.download import download_camvid, unpack
from camvid_lang.demo import demo_settings
from camvid_lang.device import pick_device
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.experiments import EXPERIMENTS, Experiment, configure
from camvid_lang.models.text import parse_classes
from camvid_lang.report.figures import curves, heat_maps, overlay, to_png
from camvid_lang.report.tables import (
    banner,
    best_language,
    encoder_note,
    measured_on,
    tables,
    to_markdown,
)
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import read_results
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.segmenter import Segmenter, class_colours, read_rgb
from camvid_lang.training.mirror import Mirror

__all__ = ["Session", "ask", "panel", "similar", "start"]

SMOKE_SCENES = {"counts": {"train": 12, "val": 4, "test": 6}, "size": (96, 128)}
MAX_SIDE = 512  # pixels of the panel's images: a second or two on two cores
# The notebook that runs an experiment, by the beginning of the experiment's name.
NOTEBOOKS = {"bilinear": "02", "adapter": "02", "frozen": "03", "full": "04", "swiftnet": "04"}


def start(
    profile: str = "auto",
    data: str = "camvid",
    drive: bool | str | Path = False,
    resume: bool = True,
    settings: str = "",
) -> "Session":
    """Prepare the data and the folders of a notebook; the arguments are the fields of its form.

    Everything is kept in `data/` and `runs/` of the current folder, or of its parent where the
    current one is called `notebooks`.

    Args:
        profile: `thesis`, `quick`, `cpu`, `smoke`, or `auto`: thesis on a GPU, else cpu.
        data: `camvid` (downloaded once), `scenes` (drawn, no download), a folder, or a zip or tar
            file, which is unpacked once. CamVid's layout may be in a folder inside.
        drive: mount Google Drive and mirror all runs to `My Drive/camvid-lang` (Colab only); or a
            folder to mirror them to.
        resume: False starts every run over and deletes what an earlier one left.
        settings: replaces settings of what is trained, as in `"epochs=10, batch_size=4"`.

    Raises:
        InputError: an unknown profile or setting, or data that cannot be had.
    """
    _one_line_errors()
    if profile == "auto":
        profile = "thesis" if pick_device().type == "cuda" else "cpu"
    entries = [entry.partition("=") for entry in settings.split(",") if entry.strip()]
    chosen = {key.strip(): value.strip() for key, _, value in entries}
    configure(
        "frozen-names", **{"profile": profile, **chosen}
    )  # raises before anything is downloaded
    work = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    given = Path(drive).expanduser() if drive and isinstance(drive, str | Path) else None
    mirror = given or (_mount_drive() if drive else None)
    if mirror and not mirror.is_dir():
        raise InputError(f"DRIVE '{mirror}' is not a folder: create it, or set DRIVE to False")
    folder = _prepare_data(data, profile, work)
    label = f"{folder.name.removesuffix('-smoke')}-{profile}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"profile {profile} on {device}; data {folder}; runs {work / 'runs' / label}")
    drive_runs = mirror / label if mirror else None
    print(f"mirrored to {drive_runs}" if mirror else "not mirrored to Google Drive")
    return Session(profile, folder, work / "runs" / label, drive_runs, resume, chosen)


@dataclass(frozen=True)
class Session:
    """A notebook's data set and its runs, one folder per experiment; made by `start`."""

    profile: str
    data: Path
    runs: Path
    drive: Path | None = None
    resume: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)

    def configure(self, name: str) -> Experiment:
        """The experiment `name` with this session's profile and settings."""
        # Drawn scenes are smaller than CamVid's frames: the settings of the demo suit them better.
        suited = demo_settings(name) if self.data.name == "scenes" and self.profile == "cpu" else {}
        chosen = {} if name.startswith("bilinear") else self.settings  # which is not trained
        return configure(name, **{"profile": self.profile, **suited, **chosen})

    def run(self, name: str) -> dict:
        """Train and score an experiment, resume it, or read its results if it is finished.

        Returns:
            The contents of its `results.json`; scores in percent.
        """
        experiment = self.configure(name)
        print(
            f"{name}: encoder {experiment.encoder} "
            f"({'trained' if experiment.train_encoder else 'frozen'}), {experiment.epochs} epochs, "
            f"batch_size {experiment.batch_size}, crop {experiment.crop}, lr {experiment.lr:g}"
        )
        live = LiveCurves(name)
        results = run(
            experiment,
            self.data,
            self.runs / name,
            fresh=not self.resume,
            mirror=self.drive / name if self.drive else None,
            on_epoch=live.update,
            command=f"notebook, profile {self.profile}",
            keep_finished=True,
        )
        live.update(results["history"], now=True)
        return results

    def finished(self) -> dict[str, dict]:
        """{experiment: results} of all finished runs, here or on Google Drive.

        Raises:
            InputError: there is none.
        """
        found = {}
        for name in EXPERIMENTS:
            files = [root / name / "results.json" for root in (self.runs, self.drive) if root]
            if file := next(filter(Path.is_file, files), None):
                found[name] = read_results(file)
        if not found:
            raise InputError(f"{self.runs}: no finished run; run notebook 02 or 03 first")
        return found

    def missing(self) -> str:
        """The thesis's experiments that are not finished, and the notebooks that run them."""
        absent = [name for name in THESIS_ROWS if name not in self.finished()]
        return ", ".join(f"{name} (notebook {NOTEBOOKS[name.split('-')[0]]})" for name in absent)

    def best(self) -> str:
        """The finished run with language of the highest mIoU; without one, any run's."""
        results = self.finished()
        return best_language(results) or max(results, key=lambda name: results[name]["miou"] or 0)

    def folder(self, name: str) -> Path:
        """The local folder of a finished run, restored from Google Drive if necessary.

        Raises:
            InputError: the run is not finished.
        """
        if name not in (finished := self.finished()):
            raise InputError(f"{name} is not finished: run it, or choose {', '.join(finished)}")
        if not (self.runs / name / "results.json").is_file():
            Mirror(self.runs / name, self.drive / name).restore(name)
        return self.runs / name

    def tables(self, *numbers: str) -> Markdown:
        """Tables of the thesis ("7.1", ...; all by default) with the scores measured here."""
        results = self.finished()
        parts = [
            f"{measured_on(results)} Profile `{self.profile}`. Void pixels are ignored; one "
            "confusion matrix for the whole split.",
            banner(results)
            or "Cells: **measured / thesis (difference)**, in %. The thesis: CamVid's 233 test "
            f"frames at 480x360. {encoder_note(results)}",
        ]
        for table in tables(results):
            if not numbers or table.number in numbers:
                parts.append(to_markdown(table))
        return Markdown("\n\n".join(filter(None, parts)))

    def published(self) -> dict[str, dict]:
        """The thesis's scores by experiment; empty unless CamVid's test split was used."""
        return {} if banner(self.finished()) else THESIS_ROWS

    def frames(self, split: str = "test", limit: int | None = None) -> Frames:
        """The frames of a split, in memory; at most 8 with the profile `smoke`."""
        return load_camvid(self.data, split, limit or (8 if self.profile == "smoke" else None))


class LiveCurves:
    """Loss and mIoU of a run, redrawn in place at most every `seconds` while it trains."""

    def __init__(self, name: str, seconds: float = 10.0):
        self.name, self.seconds, self._last = name, seconds, -np.inf
        self._handle = display(HTML(""), display_id=True)  # None outside a notebook

    def update(self, history: list[dict], now: bool = False) -> None:
        """Draw the history so far: the callback after each epoch."""
        due = now or time.monotonic() - self._last >= self.seconds
        if self._handle and history and due:
            self._handle.update(curves({self.name: history}, f"{self.name} during training"))
            self._last = time.monotonic()


def _one_line_errors() -> None:
    """Show an InputError or an interruption in one line; the cell still counts as failed."""

    def show(_shell, _kind, error, _traceback, tb_offset=None):
        line = f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}"
        print(line, file=sys.stderr)
        return [line]

    if shell := get_ipython():
        shell.set_custom_exc((InputError, Interrupted), show)


def _mount_drive() -> Path | None:
    if "google.colab" not in sys.modules:
        print("note: DRIVE needs Google Colab; runs are kept on the local disk only (set DRIVE to "
              "False, or to a folder that lasts)")  # fmt: skip
        return None
    print("mounting Google Drive; if nothing asks for access, stop the cell and set DRIVE to False")
    mount = Path.cwd() / "drive"
    folder = mount / "MyDrive" / "camvid-lang"
    try:
        from google.colab import drive

        drive.mount(str(mount))
        folder.mkdir(exist_ok=True)  # MyDrive is there if it is mounted
    # Colab raises what it likes: declined access, blocked cookies, another kernel, ...
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"Google Drive cannot be mounted ({reason}): allow access and third-party cookies, or "
            "set DRIVE to False, or to another folder that lasts"
        ) from error
    return folder


def _prepare_data(data: str, profile: str, work: Path) -> Path:
    """The folder of the data set on the local disk."""
    if data == "scenes":
        small = SMOKE_SCENES if profile == "smoke" else {}
        return write_scenes(work / "data" / ("scenes-smoke" if small else "scenes"), **small)
    if data == "camvid":
        download_camvid(work / "data" / "camvid")
        return work / "data" / "camvid"
    folder = Path(data).expanduser()
    if folder.is_file():
        return _unpack_once(folder, work / "data")
    if not folder.is_dir():
        raise InputError(
            f"DATA '{data}' is not a folder: choose camvid, scenes, a folder, or a zip or tar file"
        )
    folder = _find_layout(folder)
    if "google.colab" not in sys.modules or "drive" not in folder.resolve().parts:
        return folder
    # Thousands of small reads from Google Drive stall; one copy does not. It is used again for the
    # same source with the same files only, not for another of that name or corrected labels.
    key = [str(folder.resolve())]
    for at, _, names in os.walk(folder, followlinks=True):
        status = [(name, os.stat(Path(at, name))) for name in sorted(names)]
        key += [f"{at} {name} {entry.st_size} {entry.st_mtime_ns}" for name, entry in status]
    digest = hashlib.sha256("\n".join(sorted(key)).encode(errors="surrogateescape")).hexdigest()
    local = work / "data" / digest[:16] / folder.name
    if not local.is_dir():
        part = local.with_name(f"{local.name}.part")
        shutil.copytree(folder, part, dirs_exist_ok=True)
        part.rename(local)
    return local


def _unpack_once(archive: Path, data: Path) -> Path:
    """The data set of an archive as a folder in `data` that is named after its content."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    folder = data / f"{archive.name.partition('.')[0]}-{digest.hexdigest()[:10]}"
    if not folder.is_dir():
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=data) as temporary:
            unpack(archive, Path(temporary, "all"), f"DATA '{archive}'")
            _find_layout(Path(temporary, "all")).rename(folder)
    return folder


def _find_layout(folder: Path) -> Path:
    """The folder in CamVid's layout: this one, or one up to three levels below it."""
    found: list[Path] = []
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        labels = (x for x in folder.glob(f"{depth}trainannot") if "__MACOSX" not in x.parts)
        # What lies in a data set belongs to it.
        found += [x.parent for x in labels if x.is_dir() and not {*x.parents} & {*found}]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in sorted(found)[:4])
        raise InputError(f"DATA: {folder} holds several data sets ({names}): choose one folder")
    return (found or [folder])[0]


def ask(segmenter: Segmenter, image: np.ndarray, text: str) -> tuple[Figure, Figure]:
    """Segment an image by any classes.

    Args:
        image: (H, W, 3) uint8; reduced to a longer side of `MAX_SIDE` pixels.
        text: the classes, see `models.text.parse_classes` (which raises InputError).

    Returns:
        The segmentation with its legend, and a heat map of each class's probability among them.
    """
    classes = parse_classes(text)
    small = Image.fromarray(image)
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    pixels = np.array(small)
    cosines = segmenter.cosines(pixels, classes)
    ids = cosines.argmax(axis=0).astype(np.uint8)
    segmentation = overlay(pixels, ids, list(classes), class_colours(list(classes)))
    return segmentation, heat_maps(pixels, cosines, list(classes), segmenter.temperature)


def panel(
    segmenter: Segmenter,
    images: Mapping[str, np.ndarray],
    text: str = "road, vehicle, tree, building, sky, person",
) -> ipywidgets.VBox:
    """A widget to choose one of `images`, or upload one, and to segment it by any classes."""
    choice = ipywidgets.Dropdown(options=list(images), description="image")
    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="or upload")
    classes = ipywidgets.Textarea(value=text, description="classes", layout={"width": "640px"})
    button = ipywidgets.Button(description="segment", button_style="primary")
    message = ipywidgets.HTML()
    outputs = [ipywidgets.Image(format="png", layout={"max_width": "960px"}) for _ in range(2)]
    latest = choice  # or upload: the one that was used last

    def segment() -> None:
        message.value = "…"
        try:
            image = images[choice.value] if latest is choice else _read_upload(upload.value)
            figures = ask(segmenter, image, classes.value)
        except InputError as error:
            message.value = f"<b>{html.escape(str(error))}</b>"
            return
        for output, figure in zip(outputs, figures, strict=True):
            output.value = to_png(figure)
        message.value = ""

    def use(change: Bunch) -> None:
        nonlocal latest
        if change.new:  # an upload is empty while it is being replaced
            latest = change.owner
            segment()

    button.on_click(lambda _button: segment())
    choice.observe(use, names="value")
    upload.observe(use, names="value")
    segment()
    return ipywidgets.VBox([ipywidgets.HBox([choice, upload]), classes, button, message, *outputs])


def _read_upload(value: Mapping | Sequence) -> np.ndarray:
    """The newest image (H, W, 3) uint8 of a FileUpload's value."""
    if isinstance(value, Mapping):  # ipywidgets 7: {name: {"content": bytes, ...}}
        name, entry = list(value.items())[-1]
    else:  # ipywidgets 8: ({"name": ..., "content": memoryview, ...}, ...)
        name, entry = value[-1]["name"], value[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(entry["content"])
        return read_rgb(path)


def similar(segmenter: Segmenter, prompts: Sequence[str]) -> Markdown:
    """A table of the run's three most similar classes to each prompt, by text embeddings."""
    lines = ["| prompt | most similar classes of the run (cosine) |", "|---|---|"]
    for prompt, cosines in zip(prompts, segmenter.similarity(prompts), strict=True):
        nearest = sorted(zip(cosines, segmenter.classes, strict=True), reverse=True)[:3]
        lines.append(f"| {prompt} | {', '.join(f'{name} ({c:.2f})' for c, name in nearest)} |")
    return Markdown("\n".join(lines))
