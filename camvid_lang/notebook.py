"""What the six notebooks share: a session with data and runs, live curves, and the panel of 06."""

import hashlib
import html
import io
import itertools
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import HTML, Markdown, display
from PIL import Image
from traitlets import Bunch

from camvid_lang.data.camvid import Frames, find_root, load_camvid
from camvid_lang.data.download import download_camvid, unpack, unpack_scenes
from camvid_lang.data.labels import open_image
from camvid_lang.data.words import parse_classes
from camvid_lang.demo import ALL_EPOCHS, CARRIED, EPOCHS, ROWS, demo_settings
from camvid_lang.device import pick_device, to_device
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.experiments import EXPERIMENTS, Experiment, configure
from camvid_lang.report import tables
from camvid_lang.report.figures import Canvas, curves, heat_maps, overlay
from camvid_lang.report.legend import drawn_names
from camvid_lang.results import RunFolder, read_results
from camvid_lang.runs import build_model, run
from camvid_lang.segmenter import ImageLike, Segmentation, Segmenter, load, read_rgb
from camvid_lang.training.checkpoint import Checkpoints
from camvid_lang.training.mirror import Mirror

SMOKE_SCENES = 8  # of each split, with the profile `smoke`
MAX_SIDE = 512  # pixels of the heat maps


def start(  # noqa: PLR0913  the public API
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
        data: `camvid` (downloaded once), `scenes` (drawn; the package carries them), a folder, or a
            zip or tar file, which is unpacked once. CamVid's layout may be in a folder inside.
        drive: mirror all runs to `My Drive/camvid-lang` (Colab only), or to this folder.
        runs: the experiments to run, separated by commas: `Session.names`.
        fresh: those of them to start over; what they left is deleted, on Google Drive too.
        settings: of what is trained, as in `"epochs=10, batch_size=4"`; part of the folders' names.
        demo: where no run is finished, read those that the package carries, with their scenes.

    Raises:
        InputError: an unknown profile, setting or run; data that is missing or damaged.
    """
    _show_errors_in_one_line()
    cuda = pick_device().type == "cuda"
    profile = ("thesis" if cuda else "cpu") if profile == "auto" else profile
    names, again = ([n.strip() for n in text.split(",") if n.strip()] for text in (runs, fresh))
    chosen = _read_settings(settings, profile, [*names, *again])
    if unused := [name for name in again if name not in names]:
        print(f"note: FRESH names {', '.join(unused)}, which RUNS does not: add them to RUNS")
    work = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    mirror = _mirror(drive)
    folders = [root / f"{data}-{profile}" for root in (work / "runs", mirror) if root]
    finished = any(any(folder.glob("*/results.json")) for folder in folders)
    if demo and data in ("camvid", "scenes") and not finished:
        print(
            f"no run is finished in {folders[0]}: shown are runs of `demo --all` on drawn "
            "scenes, with a tiny CLIP, which the package carries; run notebook 3 for real ones"
        )
        return Session("cpu", unpack_scenes(work / "data" / "scenes"), CARRIED)
    folder = _prepare_data(data, profile, work)
    label = f"{folder.name.removesuffix('-smoke')}-{profile}"
    no_gpu = "CPU (for a GPU in Colab: Runtime > Change runtime type > T4 GPU)"
    device = torch.cuda.get_device_name() if cuda else no_gpu
    print(f"profile {profile} on {device}; data {folder}; runs {work / 'runs' / label}")
    if copies := mirror and mirror / label:
        copies.mkdir(exist_ok=True)
    print(f"mirrored to {copies}" if mirror else "not mirrored to Google Drive")
    if profile in ("cpu", "smoke") and data != "scenes" and "weights" not in chosen:
        print(
            "note: without weights this profile trains the tiny CLIP, which knows drawn scenes: "
            "full-names then has 46 % mIoU on CamVid, in a quarter of an hour of a core; with "
            "weights of ResNet-18 in SETTINGS, as in weights=resnet18.safetensors, 60 %"
        )
    return Session(profile, folder, work / "runs" / label, copies, names, again, chosen)


def _read_settings(settings: str, profile: str, names: Sequence[str]) -> dict[str, str]:
    """{key: value} of `"epochs=10, batch_size=4"`; `InputError` where an experiment lacks a key."""
    entries = [map(str.strip, entry.partition("=")) for entry in settings.split(",")]
    chosen = {key: value for key, _, value in entries if key or value}
    for name in ("frozen-names", *names):
        configure(name, **{"profile": profile, **_settings_of(name, chosen)})
    return chosen


def _settings_of(name: str, chosen: Mapping[str, str]) -> Mapping[str, str]:
    """The settings chosen for an experiment: none for the bilinear ones, which are not trained."""
    return {} if name.startswith("bilinear") else chosen


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
        epochs = EPOCHS if name in ROWS else ALL_EPOCHS
        suited = demo_settings(name, epochs) if self._on_scenes else {}
        chosen = _settings_of(name, self.settings)
        return configure(name, **{"profile": self.profile, **suited, **chosen})

    @property
    def _on_scenes(self) -> bool:
        return self.data.name == "scenes" and self.profile == "cpu"

    def run(self, name: str) -> dict:
        """Train and score an experiment, resume it, or read it if it is finished: `runs.run`.

        On drawn scenes with the profile `cpu`, only the demo's ROWS are trained; the others, which
        would take longer, are copied from the package, unless FRESH or SETTINGS change them.
        """
        experiment, fresh = self.configure(name), name in self.fresh
        folders = [root / self._folder(name) for root in (self.runs, self.drive) if root]
        copied = self._on_scenes and not self.settings and name not in ROWS
        if fresh:
            print(f"FRESH: {name} starts over in {' and '.join(map(str, folders))}")
        elif copied and (CARRIED / name).is_dir() and not folders[0].exists():
            print(f"{name} ({experiment.epochs} epochs) is read from the package, not trained here")
            shutil.copytree(CARRIED / name, folders[0])
        thesis = configure(name).settings().items()
        other = [f"{k}={v}" for k, v in experiment.settings().items() if (k, v) not in thesis]
        print(f"{name}, settings other than the thesis's:", ", ".join(other) or "none")
        draw = live_curves(name)
        options = {"mirror": folders[1] if self.drive else None, "fresh": fresh, "on_epoch": draw}
        options["command"] = f"notebook, profile {self.profile}"
        results = run(experiment, self.data, folders[0], **options)
        draw(results["history"], now=True)
        return results

    def _folder(self, name: str) -> str:
        """The folder of an experiment's run; settings that were chosen are part of its name."""
        chosen = _settings_of(name, self.settings)
        return " ".join([name, *(f"{key}={Path(chosen[key]).name}" for key in sorted(chosen))])

    def _files(self) -> dict[str, Path]:
        """{name: results.json} of all finished runs, in the order of the experiments."""
        roots = filter(None, (self.drive, self.runs))  # the local file replaces the one on Drive
        found = {file.parent.name: file for root in roots for file in root.glob("*/results.json")}
        titles = {name: f"{name} (no SETTINGS)" for name in EXPERIMENTS}
        titles |= {self._folder(name): name for name in EXPERIMENTS}
        names = [*EXPERIMENTS, *(folder.partition(" ")[0] for folder in found)]  # others come last
        ordered = sorted(found, key=lambda folder: (names.index(folder.partition(" ")[0]), folder))
        return {titles.get(folder, folder): found[folder] for folder in ordered}

    def finished(self) -> dict[str, dict]:
        """{experiment: results} of all finished runs, here or on Google Drive.

        Runs with other settings than this session's have the names of their folders, such as
        "frozen-names epochs=10". `InputError` without one.
        """
        if not (files := self._files()):
            raise InputError(f"{self.runs}: no finished run; run notebook 02, 03 or 04 first")
        return {name: read_results(file) for name, file in files.items()}

    def best(self) -> str:
        """The finished run with language and weights of the highest mIoU; or else the first run."""
        return self._best_with_weights() or next(iter(self.finished()))

    def _best_with_weights(self) -> str | None:
        files = self._files()
        return tables.best_language({n: read_results(files[n]) for n in self._with_weights()})

    def _with_weights(self) -> list[str]:
        """The finished runs that can be loaded."""
        folders = {name: RunFolder(file.parent) for name, file in self._files().items()}
        return [name for name, run in folders.items() if Checkpoints(run.checkpoints).files()]

    def folder(self, name: str) -> Path:
        """The local folder of a run, restored from Drive if necessary; `InputError`: unfinished."""
        files = self._files()
        if name not in files:
            choices = ", or choose ".join(["", *self._with_weights()])
            raise InputError(f"{name} is not finished: run it (notebooks 02 to 04){choices}")
        local = RunFolder(self.runs / files[name].parent.name)
        if not local.is_finished:
            settings = read_results(files[name])["settings"]
            Mirror(local, RunFolder(files[name].parent)).restore(settings)
        return local.path

    def segmenter(self, name: str = "") -> Segmenter:
        """The model of a finished run, by default the best; if none is, the package's model.

        `bilinear-*` need no run.
        """
        if name.startswith("bilinear"):
            experiment, device = self.configure(name), pick_device()
            model, text_encoder = build_model(experiment)
            return Segmenter(to_device(model.eval(), device), experiment, lambda: text_encoder)
        if name := name or self._best_with_weights():
            return load(self.folder(name))
        name = "demo" if self.data.name.startswith("scenes") else "camvid"
        print(f"no run is finished in {self.runs}: load({name!r}), which the package carries")
        return load(name)

    def tables(self, *numbers: str) -> Markdown:
        """Tables of the thesis ("7.1", ...; all by default) with the scores measured here."""
        results = self.finished() if self._files() else {}
        note = tables.banner(results) or (
            "Cells: **measured / thesis (difference)**, in %. The thesis: CamVid's 233 test "
            "frames at 480x360, ConvNeXt-Base (ResNet-18 for SwiftNet)."
        )
        chosen = [t for t in tables.tables(results) if not numbers or t.number in numbers]
        if not chosen:
            return Markdown("None of the runs of this table is finished.")
        measured = f"{tables.measured_on(results)} Profile `{self.profile}`."
        return Markdown("\n\n".join([measured, note, *map(tables.to_markdown, chosen)]))

    def frames(self, split: str = "test", limit: int | None = None) -> Frames:
        """The frames of a split, in memory; at most 8 with the profile `smoke`."""
        return load_camvid(self.data, split, limit or (8 if self.profile == "smoke" else None))


def live_curves(name: str, seconds: float = 10.0) -> Callable[..., None]:
    """A callback that redraws a run's history in place, at most every `seconds` or `now`."""
    handle, last = display(HTML(""), display_id=True), -np.inf  # None outside a notebook

    def draw(history: list[dict], now: bool = False) -> None:
        nonlocal last
        if handle and history and (now or time.monotonic() - last >= seconds):
            handle.update(curves({name: history}, f"{name} during training"))
            last = time.monotonic()

    return draw


def _show_errors_in_one_line() -> None:
    """Show an InputError or an interruption in one line; the cell still counts as failed."""

    def show(_shell, _kind, error, _traceback, tb_offset=None):
        hint = " (here: name the run in FRESH)" if "fresh=True" in str(error) else ""
        line = f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}{hint}"
        print(line, file=sys.stderr)
        return [line]

    if shell := get_ipython():
        shell.set_custom_exc((InputError, Interrupted), show)


def _mirror(drive: bool | str | Path) -> Path | None:
    """The folder that runs are mirrored to: a folder of Google Drive, another, or none."""
    if drive and isinstance(drive, str | Path):
        folder = Path(drive).expanduser()
        if not folder.is_dir():
            raise InputError(f"DRIVE '{folder}' is not a folder: create it, or set DRIVE to False")
        return folder
    if drive and "google.colab" not in sys.modules:
        way_out = "set DRIVE to False, or to a folder that lasts"
        print(f"note: DRIVE needs Google Colab; runs are on the local disk only ({way_out})")
    if not drive or "google.colab" not in sys.modules:
        return None
    print("mounting Google Drive; if nothing asks for access, stop the cell and set DRIVE to False")
    folder = Path.cwd() / "drive" / "MyDrive" / "camvid-lang"
    try:
        from google.colab import drive as google

        google.mount(str(folder.parents[1]))
        folder.mkdir(exist_ok=True)  # MyDrive exists if it is mounted
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
        if profile == "smoke":
            return unpack_scenes(work / "data" / "scenes-smoke", SMOKE_SCENES)
        return unpack_scenes(work / "data" / "scenes")
    if data == "camvid":
        return download_camvid(work / "data" / "camvid").root
    folder = Path(data).expanduser()
    if folder.is_file():
        return _unpack_once(folder, work / "data")
    if not folder.is_dir():
        choices = "camvid, scenes, a folder, or a zip or tar file"
        raise InputError(f"DATA '{data}' is not a folder: choose {choices}")
    if "google.colab" in sys.modules and "drive" in folder.resolve().parts:
        print("note: a folder on Google Drive is slow to read: give a zip file of it as DATA")
    return find_root(folder) or folder


def _unpack_once(archive: Path, data: Path) -> Path:
    """The data set of an archive as a folder in `data` that is named after its content."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = data / f"{archive.name.partition('.')[0]}-{digest[:10]}"
    if not folder.is_dir():
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=data) as temporary:
            unpack(archive, Path(temporary, "all"), f"DATA '{archive}'")
            unpacked = Path(temporary, "all")
            (find_root(unpacked) or unpacked).rename(folder)
    return folder


class Figures(tuple[Canvas, ...]):
    """Figures that a notebook shows one below the other."""

    def _ipython_display_(self) -> None:
        display(*self)


def ask(segmenter: Segmenter, image: ImageLike, text: str, **options: object) -> Figures:
    """The segmentation of any image that `segment` takes, and a heat map of each class.

    `text` are the classes, see `parse_classes`; `options` are of `Segmenter.segment`. Prints notes.
    """
    _, figures, notes = _answer(segmenter, image, text, **options)
    print(*notes, sep="\n", end="\n" if notes else "")
    return figures


def _answer(
    segmenter: Segmenter, image: ImageLike, text: str, **options: object
) -> tuple[Segmentation, Figures, list[str]]:
    """The segmentation; the figures of `ask`; and what to say about the classes."""
    classes = parse_classes(text)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = segmenter.segment(image, classes, **options)
    drawn = overlay(found.image, found.ids, found.classes, found.colours)
    small, several = Image.fromarray(found.image), len(found.classes) > 1
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    pixels = np.array(small)
    if several:
        maps = segmenter.probabilities(pixels, classes, **options)
    else:  # whose probability would be 1
        maps = segmenter.cosines(pixels, classes)
    maps = heat_maps(pixels, maps, found.classes, probabilities=several)
    notes = [str(x.message) for x in warned if x.category is UserWarning]
    shown = zip(drawn_names(list(classes)), classes, strict=True)
    notes += [f"{numbered}: {name}" for numbered, name in shown if numbered != name]
    return found, Figures((drawn, maps)), notes


def panel(
    segmenter: Segmenter,
    images: Mapping[str, np.ndarray],
    text: str = "road, vehicle, tree, building, sky, person",
) -> ipywidgets.VBox:
    """A widget to segment one of `images` or an upload; `save` writes to the folder `segmented`."""
    return _Panel(segmenter, images, text).box


class _Panel:
    """The widgets of `panel` and what they show."""

    def __init__(self, segmenter: Segmenter, images: Mapping[str, np.ndarray], text: str):
        self.segmenter, self.images = segmenter, images
        self.choice = ipywidgets.Dropdown(options=list(images), description="image")
        only = {"accept": "image/*", "multiple": False}
        self.upload = ipywidgets.FileUpload(description="or upload", **only)
        layout = {"width": "95%"}
        self.words = ipywidgets.Textarea(value=text, description="classes", layout=layout)
        self.none = ipywidgets.Checkbox(description="none of these", indent=False)
        self.message = ipywidgets.HTML()
        layout = {"max_width": "100%", "width": "960px"}
        self.outputs = [ipywidgets.Image(format="png", layout=layout) for _ in range(2)]
        self.latest = self.choice.value, images[self.choice.value]  # chosen or uploaded
        self.shown: tuple[str, Segmentation] | None = None
        button = ipywidgets.Button(description="segment", button_style="primary")
        save = ipywidgets.Button(description="save")
        button.on_click(self.segment)
        save.on_click(self.save)
        for source in (self.choice, self.upload, self.none):
            source.observe(self.segment, names="value")
        rows = [[self.choice, self.upload], [self.words], [button, save, self.none]]
        self.box = ipywidgets.VBox([*map(ipywidgets.HBox, rows), self.message, *self.outputs])
        self.segment()

    def segment(self, event: Bunch | ipywidgets.Button | None = None) -> None:
        """Segment the image that was chosen or uploaded last, or show what is wrong."""
        changed = event.owner if isinstance(event, Bunch) else None
        if changed in (self.choice, self.upload) and not event.new:  # while it is being replaced
            return
        self.message.value = "…"
        try:
            if changed is self.choice:
                self.latest = event.new, self.images[event.new]
            elif changed is self.upload:
                self.latest = _read_upload(event.new)
                self.choice.value = None  # so that any frame can be chosen again
            options = {"none_below": 0.5} if self.none.value else {}
            name, image = self.latest
            found, figures, notes = _answer(self.segmenter, image, self.words.value, **options)
        except InputError as error:  # the images stay
            self.message.value = f"<b>{html.escape(str(error))}</b>"
            return
        for output, figure in zip(self.outputs, figures, strict=True):
            output.value = figure.png(dpi=150)
        self.shown = Path(name).stem, found
        self.message.value = "<br>".join(map(html.escape, notes))

    def save(self, _button: ipywidgets.Button) -> None:
        """Write what is shown."""
        if self.shown:
            name, found = self.shown
            stems = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
            free = (Path("segmented", x) for x in stems if not Path(f"segmented/{x}.png").exists())
            blended = found.save(next(free))
            self.message.value = f"saved in {html.escape(str(blended.parent.resolve()))}"


def _read_upload(value: Mapping | Sequence) -> tuple[str, np.ndarray]:
    """Name and pixels (H, W, 3) uint8 of the newest image of a FileUpload's value."""
    if isinstance(value, Mapping):  # ipywidgets 7: {name: {"content": bytes, ...}}
        name, entry = list(value.items())[-1]
    else:  # ipywidgets 8: ({"name": ..., "content": memoryview, ...}, ...)
        name, entry = value[-1]["name"], value[-1]
    name = Path(name).name
    with open_image(io.BytesIO(entry["content"]), name, turned=True) as image:
        return name, read_rgb(image)
