"""Segment any pictures with any words, by a trained run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camvid_lang.data import read_image
from camvid_lang.devices import pick_device, place
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.galleries import overlay
from camvid_lang.plotting import palette, to_png
from camvid_lang.runs import load_run

__all__ = ["segment_files"]

# Larger pictures are segmented at this size and the result is brought back: the networks learned
# from frames of about 480x360, and memory grows with the area.
MAX_SIDE = 1024


def segment_files(
    images: Sequence[str | Path],
    classes: Mapping[str, Sequence[str]],
    run: str | Path,
    out: str | Path,
    device: str = "auto",
    checkpoint: str = "last",
) -> list[Path]:
    """Write, for each picture NAME, `NAME.png` (ids) and `NAME_overlay.png` (with a legend).

    Args:
        images: picture files; ids are given at the picture's own size.
        classes: {class: [phrase, ...]}; id k is the k-th class.
        run: folder of a finished run of a language model.
        out: folder for the results, made if missing.
        checkpoint: which of the run's, `last` or `best`, see `runs.load_run`.

    Returns:
        The files written.

    Raises:
        InputError: a picture that cannot be read or would be overwritten, two of one name, more
            than 255 classes, or whatever `load_run` refuses. Pictures are all checked before the
            first is segmented.
    """
    if len(classes) > 255:
        raise InputError(f"{len(classes)} classes: an id map holds at most 255")
    stems: dict[str, Path] = {}
    for path in map(Path, images):
        if path.stem in stems:
            raise InputError(f"{path} and {stems[path.stem]} would both be written as {path.stem}")
        stems[path.stem] = path
        read_image(path, upright=True)
    out = Path(out)
    names = [(f"{stem}.png", f"{stem}_overlay.png") for stem in stems]
    targets = [(out / name).resolve() for pair in names for name in pair]
    for path in stems.values():
        if path.resolve() in targets:
            raise InputError(f"{path} would be overwritten by a result: choose another --out")
    if len(set(targets)) < len(targets):
        raise InputError("a result and an overlay would have one name: rename one of the pictures")
    where = pick_device(device)
    model, _ = load_run(run, classes, checkpoint)
    model = place(model, where)
    out.mkdir(parents=True, exist_ok=True)
    colours = palette(len(classes))
    written = []
    for path, (plain, coloured) in zip(stems.values(), names, strict=True):
        image = read_image(path, upright=True)
        ids = segment_image(model, image)
        figure = overlay(image, ids, list(classes), colours)
        for picture, name in ((_png(ids), plain), (to_png(figure), coloured)):
            temporary = out / f"{name}.part"
            temporary.write_bytes(picture)
            temporary.replace(out / name)
            written.append(out / name)
    return written


def segment_image(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture -> (H, W) uint8 ids, by a model in evaluation mode."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    # The encoders need 32 pixels a side for their coarsest map to have a cell.
    size = max(32, round(width * scale)), max(32, round(height * scale))
    resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(resized).permute(2, 0, 1)[None]
    ids = predict(model, tensor.to(next(model.parameters()).device))[0].cpu().numpy()
    return np.array(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))


def _png(ids: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()
