"""camvid_lang: semantic segmentation with language embeddings on CamVid.

Modules, lowest first (each imports only from those before it):

* `taxonomy`, `scenes`, `data`, `download`: classes, drawn scenes, real frames.
* `cosine`, `upsampler`, `encoder`, `text`: the parts of the method.
* `models`, `metrics`: the models of the thesis, and how they are scored.
* `experiments`, `checkpoint`, `training`: one row of a table, and how it is learned.
* `evaluation`, `results`, `runs`: one experiment from weights to scores.
* `tables`, `figures`, `report`, `run_reports`: what is shown of it.
* `segment`, `demo`, `cli`: what is called from outside.
"""

from importlib import metadata

try:
    __version__ = metadata.version("camvid-lang")
except metadata.PackageNotFoundError:  # used from a checkout that was not installed
    __version__ = "0+unknown"
