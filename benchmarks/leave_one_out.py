"""Each class held out of training in turn, and asked for by name, on drawn scenes.

    python benchmarks/leave_one_out.py SCENES OUT.json [CLASS ...]

SCENES is `runs/demo/scenes` of `make demo`. For each class a frozen tiny CLIP is trained as in the
demo's row `held-out` without it, and scored in the ways of `Match.scores`; beside it is the
untrained model (bilinear). About two minutes of a core for a class; classes that OUT.json already
has are kept.
"""

import json
import sys
import tempfile
from pathlib import Path

import camvid_lang as cl
from camvid_lang.data.classes import CLASSES
from camvid_lang.demo import demo_settings
from camvid_lang.evaluation import held_out_scores
from camvid_lang.results import versions


def main(scenes: str, out: str, *classes: str) -> None:
    path, test = Path(out), cl.load_camvid(scenes, "test")
    found = json.loads(path.read_text()) if path.exists() else {"versions": versions()}
    found["data"] = {"name": "scenes", "digest": test.digest, "test_frames": len(test)}
    with tempfile.TemporaryDirectory() as folder:
        bar = cl.run(cl.experiment("bilinear-names", "cpu"), scenes, f"{folder}/bilinear")
        for name in classes or CLASSES:
            if name in found:
                continue
            settings = {**demo_settings("held-out"), "held_out": name}
            cl.run(cl.experiment("held-out", "cpu", **settings), scenes, f"{folder}/{name}")
            scores = cl.load(f"{folder}/{name}", device="cpu").vocabulary_shift(test, {})
            found[name] = {
                **scores["held_out_scores"],
                "bilinear": held_out_scores(bar["iou"], [name]),
            }
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
