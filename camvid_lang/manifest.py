"""What a data folder should hold: the release's manifest, and the folder's own dataset.json.

The manifest lists the SHA-256 of every picture's pixels, one `DIGEST  folder/name` a line;
`download` makes and uses it, and `layout` knows CamVid's names by it.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from camvid_lang.errors import InputError
from camvid_lang.pictures import one_line

__all__ = ["FOLDERS", "MANIFEST", "compare_with_release", "read_card", "read_manifest"]

FOLDERS = ("train", "val", "test")
MANIFEST = Path(__file__).parent / "assets" / "camvid_pixels.sha256"


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
