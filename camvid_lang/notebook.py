"""What the six notebooks share: a session with data and runs, live curves, and the panel of 06."""

import base64
import hashlib
import html
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
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
from camvid_lang.data.convert import recognise
from camvid_lang.data.download import download_camvid, unpack
from camvid_lang.demo import CARRIED, demo_settings
from camvid_lang.device import pick_device, to_device
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.experiments import EXPERIMENTS, Experiment, configure
from camvid_lang.models import RESNET18, TINY
from camvid_lang.models.encoder import ASSETS
from camvid_lang.models.text import parse_classes
from camvid_lang.report.figures import curves, drawn_names, heat_maps, overlay, to_png
from camvid_lang.report.tables import (
    banner,
    best_language,
    encoder_note,
    measured_on,
    tables,
    to_markdown,
    word_tables,
)
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import read_results
from camvid_lang.run import build_model, run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.segmenter import (
    NONE_OF_THESE,
    Classes,
    Segmentation,
    Segmenter,
    load,
    one_class_note,
    read_rgb,
)
from camvid_lang.training.mirror import CHECKPOINTS, Mirror

DATA_SETS = ("camvid", "scenes")
SCENE_EPOCHS = 4  # on drawn scenes with the profile `cpu`: some three minutes for a notebook
SMOKE_SCENES = {"counts": {"train": 12, "val": 4, "test": 6}, "size": (96, 128)}
MAX_SIDE = 512  # pixels of the heat maps
# ipywidgets has nothing that files can be dropped on: this writes name and content of the file into
# a hidden text field of the panel.
DROP_AREA = """<div style="border: 1px dashed; padding: 0 1em" ondragover="event.preventDefault()"
ondrop="event.preventDefault(); const file = event.dataTransfer.files[0];
const text = this.closest('.with-drop').querySelector('.dropped textarea');
const reader = new FileReader();
reader.onload = () => {text.value = file.name + '\\n' + (reader.result.split(',')[1] || '');
text.dispatchEvent(new Event('input', {bubbles: true}));};
if (file) reader.readAsDataURL(file);">or drop one here</div>"""
# The notebook that runs an experiment, by the beginning of the experiment's name.
NOTEBOOKS = {"bilinear": "02", "adapter": "02", "frozen": "03", "full": "04", "swiftnet": "04"}


def start(
    profile: str = "auto",
    data: str = "camvid",
    drive: bool | str | Path = False,
    runs: str = "",
    fresh: str = "",
    settings: str = "",
    demo: bool = False,
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
        runs: the experiments to run, separated by commas: `Session.names`.
        fresh: those of them to start over; what they left is deleted, on Google Drive too. All
            others are resumed, or read where they are finished.
        settings: replaces settings of what is trained, as in `"epochs=10, batch_size=4"`. Such
            runs have folders of their own.
        demo: where no run is finished, read those of `make demo` that the package carries, and
            draw their scenes.

    Raises:
        InputError: an unknown profile, setting or run, or data that cannot be had.
    """
    _one_line_errors()
    cuda = pick_device().type == "cuda"
    if not cuda:
        print("no GPU (Colab: Runtime > Change runtime type > T4 GPU)")
    if profile == "auto":
        profile = "thesis" if cuda else "cpu"
    # A value may have commas too, as in "held_out=tree,car, epochs=10".
    entries = [x.partition("=") for x in re.split(r",(?=[^,]*=)", settings) if x.strip(" ,")]
    chosen = {key.strip(" ,"): value.strip(" ,") for key, _, value in entries}
    names, again = ([n.strip() for n in text.split(",") if n.strip()] for text in (runs, fresh))
    for name in ("frozen-names", *names, *again):  # raises before anything is downloaded
        configure(name, **{"profile": profile, **({} if name.startswith("bilinear") else chosen)})
    if unused := [name for name in again if name not in names]:
        print(f"note: FRESH names {', '.join(unused)}, which RUNS does not: add them to RUNS")
    work = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    given = Path(drive).expanduser() if drive and isinstance(drive, str | Path) else None
    mirror = given or (_mount_drive() if drive else None)
    if mirror and not mirror.is_dir():
        raise InputError(f"DRIVE '{mirror}' is not a folder: create it, or set DRIVE to False")
    places = [root / f"{data}-{profile}" for root in (work / "runs", mirror) if root]
    if demo and data in DATA_SETS and not any(any(p.glob("*/results.json")) for p in places):
        print(
            f"no run is finished in {places[0]}: shown are runs of `camvid-lang demo` on drawn "
            "scenes, with a tiny CLIP, which the package carries; run notebook 3 for real ones"
        )
        return Session("cpu", _prepare_data("scenes", "cpu", work), CARRIED)
    folder = _prepare_data(data, profile, work)
    label = f"{folder.name.removesuffix('-smoke')}-{profile}"
    device = torch.cuda.get_device_name() if cuda else "CPU"
    print(f"profile {profile} on {device}; data {folder}; runs {work / 'runs' / label}")
    drive_runs = mirror / label if mirror else None
    print(f"mirrored to {drive_runs}" if mirror else "not mirrored to Google Drive")
    if profile in ("cpu", "smoke") and data != "scenes" and "weights" not in chosen:
        print(
            "note: the tiny CLIP of this profile was trained on drawn scenes: expect low scores, "
            "or give weights of ResNet-18 in SETTINGS, as in weights=resnet18.safetensors"
        )
    return Session(profile, folder, work / "runs" / label, drive_runs, names, again, chosen)


@dataclass(frozen=True)
class Session:
    """A notebook's data set and its runs, one folder per experiment; made by `start`."""

    profile: str
    data: Path
    runs: Path
    drive: Path | None = None
    names: Sequence[str] = ()
    fresh: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def configure(self, name: str) -> Experiment:
        """The experiment `name` with this session's profile and settings."""
        # Drawn scenes are smaller than CamVid's frames: the settings of the demo suit them better.
        on_scenes = self.data.name == "scenes" and self.profile == "cpu"
        suited = demo_settings(name, SCENE_EPOCHS) if on_scenes else {}
        chosen = {} if name.startswith("bilinear") else self.settings  # which is not trained
        return configure(name, **{"profile": self.profile, **suited, **chosen})

    def run(self, name: str) -> dict:
        """Train and score an experiment, resume it, or read its results if it is finished.

        Returns:
            The contents of its `results.json`; scores in percent.
        """
        experiment, folder, fresh = self.configure(name), self._folder(name), name in self.fresh
        places = [root / folder for root in (self.runs, self.drive) if root]
        if fresh:
            print(f"FRESH: {name} starts over in {' and '.join(map(str, places))}")
        print(
            f"{name}: encoder {experiment.encoder} "
            f"({'trained' if experiment.train_encoder else 'frozen'}), {experiment.epochs} epochs, "
            f"batch_size {experiment.batch_size}, crop {experiment.crop}, lr {experiment.lr:g}"
        )
        live = LiveCurves(name)
        results = run(
            experiment,
            self.data,
            places[0],
            fresh=fresh,
            mirror=places[1] if self.drive else None,
            on_epoch=live.update,
            command=f"notebook, profile {self.profile}",
        )
        live.update(results["history"], now=True)
        return results

    def _folder(self, name: str) -> str:
        """The folder of an experiment's run; settings that were chosen are part of its name."""
        chosen = {} if name.startswith("bilinear") else self.settings
        return " ".join([name, *(f"{key}={Path(chosen[key]).name}" for key in sorted(chosen))])

    def _files(self) -> dict[str, Path]:
        """{name: results.json} of all finished runs, in the order of the experiments."""
        found = {}
        for root in (self.drive, self.runs):  # the local file replaces the one on Google Drive
            found |= (
                {file.parent.name: file for file in root.glob("*/results.json")} if root else {}
            )
        titles = {name: f"{name} (no SETTINGS)" for name in EXPERIMENTS}
        titles |= {self._folder(name): name for name in EXPERIMENTS}
        known = [*EXPERIMENTS]

        def place(folder: str) -> int:  # others, such as "Copy of frozen-names", come last
            name = folder.split(" ")[0]
            return known.index(name) if name in known else len(known)

        return {titles.get(folder, folder): found[folder] for folder in sorted(found, key=place)}

    def finished(self) -> dict[str, dict]:
        """{experiment: results} of all finished runs, here or on Google Drive.

        Runs with other settings than this session's have the names of their folders, such as
        "frozen-names epochs=10".

        Raises:
            InputError: there is none.
        """
        if not (files := self._files()):
            raise InputError(f"{self.runs}: no finished run; run notebook 02 or 03 first")
        return {name: read_results(file) for name, file in files.items()}

    def missing(self) -> str:
        """The thesis's experiments that are not finished, and the notebooks that run them."""
        finished = self.finished()
        absent = [name for name in THESIS_ROWS if name not in finished]
        return ", ".join(f"{name} (notebook {NOTEBOOKS[name.split('-')[0]]})" for name in absent)

    def best(self) -> str:
        """The finished run with language of the highest mIoU; without one, any run's.

        Of the runs that the package carries only one has its weights, which is then the best.
        """
        files, results = self._files(), self.finished()
        kept = {name for name in results if any((files[name].parent / CHECKPOINTS).glob("*.pt"))}
        results = {name: results[name] for name in kept or results}
        return best_language(results) or max(results, key=lambda name: results[name]["miou"] or 0)

    def folder(self, name: str) -> Path:
        """The local folder of a finished run, restored from Google Drive if necessary.

        Raises:
            InputError: the run is not finished.
        """
        files = self._files()
        if name not in files:
            raise InputError(f"{name} is not finished: run it, or choose {', '.join(files)}")
        local = self.runs / files[name].parent.name
        if not (local / "results.json").is_file():
            Mirror(local, files[name].parent).restore(name.partition(" ")[0])
        return local

    def segmenter(self, name: str = "") -> Segmenter:
        """The model of a finished run, by default the best with language.

        Where no run was finished (see `start`, `demo`), on a GPU it is the thesis's CLIP, untrained
        (experiment bilinear-names), if it can be downloaded.
        """
        device = pick_device()
        if not name and self.runs == CARRIED and device.type == "cuda":
            experiment = configure("bilinear-names")
            try:
                model, text_encoder = build_model(experiment)
            except InputError as error:
                print(f"note: {error}")
            else:
                return Segmenter(to_device(model.eval(), device), experiment, lambda: text_encoder)
        return load(self.folder(name or self.best()))

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
    """The data set in a folder, or up to three levels below it."""
    layout = recognise(folder)
    return layout.root if layout else folder


def ask(
    segmenter: Segmenter, image: np.ndarray, text: str, **options: object
) -> tuple[Figure, Figure]:
    """Segment an image by any classes, as `segment` on the command line does; prints notes.

    Args:
        image: (H, W, 3) uint8.
        text: the classes, see `models.text.parse_classes` (which raises InputError).
        options: those of `segmenter.Options`, such as `none_below=0.5`.

    Returns:
        The segmentation with its legend, and a heat map of each class's probability among them.
    """
    _, figures, notes = _answer(segmenter, image, text, **options)
    for note in notes:
        print(note)
    return figures


def _answer(
    segmenter: Segmenter, image: np.ndarray, text: str, **options: object
) -> tuple[Segmentation, tuple[Figure, Figure], list[str]]:
    """The segmentation; the figures of `ask`; and what to say about the classes."""
    classes = parse_classes(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class alone, as `_notes` says it
        found = segmenter.segment(image, classes, **options)
    drawn = overlay(found.image, found.ids, found.classes, found.colours)
    maps = _maps(segmenter, image, classes, **options)
    return found, (drawn, maps), _notes(segmenter, classes)


def _maps(segmenter: Segmenter, image: np.ndarray, classes: Classes, **options: object) -> Figure:
    small = Image.fromarray(image)
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    pixels = np.array(small)
    names = [*classes, NONE_OF_THESE] if options.get("none_below") else [*classes]
    several = len(names) > 1
    maps = (segmenter.probabilities if several else segmenter.cosines)(pixels, classes, **options)
    return heat_maps(pixels, maps, names, probabilities=several)


def _notes(segmenter: Segmenter, classes: Classes) -> list[str]:
    """What to say: one class alone, names that cannot be drawn, words far from the run's."""
    names = list(classes)
    notes = [one_class_note(names[0])] if len(names) == 1 else []
    shown = zip(drawn_names(names), names, strict=True)
    notes += [f"{drawn}: {name}" for drawn, name in shown if drawn != name]
    # A word should be as similar to some class as most classes are to their nearest neighbour.
    own = segmenter.embed()
    own = own @ own.T
    np.fill_diagonal(own, -1)
    usual = np.quantile(own.max(axis=1), 0.25)
    for name, prompts in classes.items():
        nearest = segmenter.similarity(prompts).max()
        if nearest < usual:
            notes.append(f"{name}: not similar to any class of the run (cosine {nearest:.2f})")
        elif new := [word for word in prompts if not _is_known(segmenter, word)]:
            notes.append(f"{name}: the tiny CLIP was not trained on {', '.join(new)}")
    return notes


def _is_known(segmenter: Segmenter, prompt: str) -> bool:
    """False for a prompt with a word that occurs nowhere in the captions of a tiny text tower."""
    experiment = segmenter.experiment
    tiny = not experiment.text_bank and experiment.encoder in (TINY, RESNET18)
    return not tiny or _caption_words().issuperset(re.findall(r"\w+", prompt.lower()))


@cache
def _caption_words() -> set[str]:
    return {*(ASSETS / f"{TINY}.txt").read_text(encoding="utf-8").split()}


def panel(
    segmenter: Segmenter,
    images: Mapping[str, np.ndarray],
    text: str = "road, vehicle, tree, building, sky, person",
) -> ipywidgets.VBox:
    """A widget to segment one of `images`, or one that is uploaded or dropped, by any classes.

    The button `save` writes the ids and the blended image to the folder `segmented`.
    """
    choice = ipywidgets.Dropdown(options=list(images), description="image")
    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="or upload")
    dropped = ipywidgets.Textarea(layout={"display": "none"})
    dropped.add_class("dropped")
    words = ipywidgets.Textarea(value=text, description="classes", layout={"width": "95%"})
    button = ipywidgets.Button(description="segment", button_style="primary")
    save = ipywidgets.Button(description="save")
    none = ipywidgets.Checkbox(description="none of these", indent=False)
    message = ipywidgets.HTML()
    layout = {"max_width": "100%", "width": "960px"}
    outputs = [ipywidgets.Image(format="png", layout=layout) for _ in range(2)]
    latest = choice.value, images[choice.value]  # that was chosen, uploaded or dropped
    shown: tuple[str, Segmentation] | None = None

    def refuse(error: InputError) -> None:
        message.value = f"<b>{html.escape(str(error))}</b>"

    def segment(_change: object = None) -> None:
        nonlocal shown
        message.value = "…"
        name, image = latest
        options = {"none_below": 0.5} if none.value else {}
        try:
            found, figures, notes = _answer(segmenter, image, words.value, **options)
        except InputError as error:
            return refuse(error)
        for output, figure in zip(outputs, figures, strict=True):
            output.value = to_png(figure, dpi=150)
        shown = Path(name).stem, found
        message.value = "<br>".join(map(html.escape, notes))

    def write(_button: ipywidgets.Button) -> None:
        if shown:
            blended = shown[1].save(Path("segmented", shown[0]))
            message.value = f"saved in {html.escape(str(blended.parent.resolve()))}"

    def use(change: Bunch) -> None:
        nonlocal latest
        if not change.new:  # an upload is empty while it is being replaced
            return
        try:
            if change.owner is choice:
                latest = change.new, images[change.new]
            elif change.owner is upload:
                latest = _read_upload(change.new)
            else:
                name, _, content = change.new.rpartition("\n")
                dropped.value = ""  # the same file may be dropped again
                latest = _read_upload([{"name": name, "content": base64.b64decode(content)}])
        except InputError as error:
            return refuse(error)
        if change.owner is not choice:
            choice.value = None  # so that any frame can be chosen again
        segment()

    button.on_click(segment)
    save.on_click(write)
    for source in (choice, upload, dropped):
        source.observe(use, names="value")
    none.observe(segment, names="value")
    segment()
    rows = [[choice, upload, ipywidgets.HTML(DROP_AREA)], [words], [button, save, none, dropped]]
    whole = ipywidgets.VBox([*map(ipywidgets.HBox, rows), message, *outputs])
    return whole.add_class("with-drop")


def _read_upload(value: Mapping | Sequence) -> tuple[str, np.ndarray]:
    """Name and pixels (H, W, 3) uint8 of the newest image of a FileUpload's value."""
    if isinstance(value, Mapping):  # ipywidgets 7: {name: {"content": bytes, ...}}
        name, entry = list(value.items())[-1]
    else:  # ipywidgets 8: ({"name": ..., "content": memoryview, ...}, ...)
        name, entry = value[-1]["name"], value[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(entry["content"])
        return path.name, read_rgb(path)


def other_words(segmenter: Segmenter, frames: Frames) -> Markdown:
    """A table of mIoU with other words for the classes, see `classes.WORDINGS`."""
    found = segmenter.vocabulary_shift(frames)
    return Markdown(
        "\n".join(map(to_markdown, word_tables({segmenter.experiment.name: found}, {})))
    )


def similar(segmenter: Segmenter, prompts: Sequence[str]) -> Markdown:
    """A table of the run's three most similar classes to each prompt, by text embeddings."""
    lines = ["| prompt | most similar classes of the run (cosine) |", "|---|---|"]
    for prompt, cosines in zip(prompts, segmenter.similarity(prompts), strict=True):
        nearest = sorted(zip(cosines, segmenter.classes, strict=True), reverse=True)[:3]
        lines.append(f"| {prompt} | {', '.join(f'{name} ({c:.2f})' for c, name in nearest)} |")
    return Markdown("\n".join(lines))
