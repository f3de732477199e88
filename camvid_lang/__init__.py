"""Semantic segmentation with language embeddings on CamVid.

    load             the model of a run, or one of the package ("camvid", "demo"): a Segmenter
    Segmenter        segments any image into any classes
    experiment       an experiment of the thesis with a profile and settings
    run              train and score an experiment, or resume it
    evaluate         scores of a model on frames
    score            scores of a folder of predictions
    download_camvid  download CamVid and check every pixel
    load_camvid      the frames of a split, in memory
    InputError       raised for wrong input; the message says how to fix it

Example:
    >>> import camvid_lang as cl
    >>> segmenter = cl.load("runs/frozen-names")
    >>> result = segmenter.segment("street.png", ["car", "tree", "shop window"])
    >>> result.ids.shape, result.classes, result.overlay().size
    ((96, 128), ['car', 'tree', 'shop window'], (128, 96))
    >>> results = cl.run(cl.experiment("frozen-names", "smoke"), data="data/camvid", out="runs/x")
    frozen-names: profile smoke on ...
    >>> test = cl.load_camvid("data/camvid", split="test")
    >>> cl.evaluate(segmenter.model, test)["miou"] == results["miou"]
    True
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time a name is imported when it is used
    from camvid_lang.data.camvid import load_camvid
    from camvid_lang.data.download import download_camvid
    from camvid_lang.errors import InputError
    from camvid_lang.evaluation import evaluate, score
    from camvid_lang.experiments import configure as experiment
    from camvid_lang.runs import run
    from camvid_lang.segmenter import Segmenter, load

__version__ = "0.1.0"
__all__ = ["InputError", "Segmenter", "__version__", "download_camvid", "evaluate", "experiment",
           "load", "load_camvid", "run", "score"]  # fmt: skip
_MODULES = {"load": "segmenter", "Segmenter": "segmenter", "download_camvid": "data.download",
            "load_camvid": "data.camvid", "experiment": "experiments", "evaluate": "evaluation",
            "score": "evaluation", "InputError": "errors", "run": "runs"}  # fmt: skip
MODELS = {"camvid": "camvid", "demo": "demo/full-narrow-descriptions"}  # runs in `assets`, by name


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'camvid_lang' has no attribute {name!r}")
    module = importlib.import_module(f"camvid_lang.{_MODULES[name]}")
    return getattr(module, "configure" if name == "experiment" else name)
