"""In plain words: on what data, with which encoder and which settings a result was measured."""

import os

from camvid_lang.encoder import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS

__all__ = ["banner", "encoder_note", "is_camvid", "is_thesis_encoder", "measured_on"]

TEST_FRAMES = 233


def is_camvid(result):
    """Whether a result was measured on all 233 test frames of CamVid."""
    data = result.get("data") or {}
    limited = bool((result.get("settings") or {}).get("limit"))
    named = str(data.get("name", "")).lower() == "camvid"
    return named and data.get("complete") is True and not limited


def is_thesis_encoder(name, result):
    """Whether the experiment `name` used the thesis's encoder with the thesis's weights.

    The thesis's SwiftNet stands on a ResNet-18 and has no language in it.
    """
    encoder = result.get("encoder") or {}
    weights = str(encoder.get("weights") or "")
    if name == "swiftnet":
        return encoder.get("name") == RESNET18 and not weights.startswith("random")
    return encoder.get("name") == THESIS_ENCODER and THESIS_WEIGHTS in weights


def _data_name(data):
    """The data set's name for a reader: `scenes.write_scenes` calls its own "scenes"."""
    return "drawn road scenes" if data.get("name") == "scenes" else str(data.get("name", ""))


def _data_text(result):
    data = result.get("data") or {}
    if not data:
        return "data that the result does not name"
    text = f"{data.get('test_frames', 'an unknown number of')} test frames of {_data_name(data)}"
    size = data.get("size") or ()
    if len(size) == 2:
        text += f", {size[1]} × {size[0]} pixels"
    return text


def _encoder_text(result):
    encoder = result.get("encoder") or {}
    if not encoder.get("name"):
        return "an encoder that the result does not name"
    text = str(encoder["name"])
    # The folder of a weights file says nothing to a reader and is somebody's home.
    for key, phrase in (("weights", "weights"), ("text", "text vectors")):
        if encoder.get(key):
            text += f", {phrase} {os.path.basename(str(encoder[key]))}"
    return text


def _grouped(experiments, describe):
    groups = {}
    for name, result in experiments.items():
        groups.setdefault(describe(result), []).append(name)
    # The largest group goes first and unnamed: the sentence stays short when one run differs.
    first, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    return first[0] + "".join(f" (but for {', '.join(names)}: {text})" for text, names in others)


def _which(names, experiments):
    """Some of the experiments in words, by those left out if that is shorter."""
    rest = [name for name in experiments if name not in names]
    return ", ".join(names) if len(names) <= len(rest) else f"all but {', '.join(rest)}"


def measured_on(experiments):
    """One plain sentence on data and encoder of {name: result}, grouped where they differ."""
    if not experiments:
        return "Nothing was measured: this page shows the thesis's numbers alone."
    # Baselines that learn nothing were given no frames to learn from, on the same data.
    learned = max((one.get("data") or {}).get("train_frames") or 0 for one in experiments.values())
    frames = f" ({learned} frames to learn from)" if learned else ""
    return (
        f"Measured on {_grouped(experiments, _data_text)}{frames}, "
        f"with the encoder {_grouped(experiments, _encoder_text)}."
    )


def banner(experiments):
    """A warning if some result is not from the complete CamVid test split, else an empty text."""
    others = {name: result for name, result in experiments.items() if not is_camvid(result)}
    if not others:
        return ""
    names = {_data_name(result.get("data") or {}) for result in others.values()}
    if {name.lower() for name in names} == {"camvid"}:
        why = "They were measured on a part of CamVid"
    else:
        why = f"They were measured on {', '.join(sorted(names - {''})) or 'data without a name'}"
    which = "" if len(others) == len(experiments) else f" ({_which(others, experiments)})"
    return (
        f"These are not CamVid figures{which}. {why}, not on CamVid's {TEST_FRAMES} test frames, "
        "so a difference from the thesis says nothing about the method."
    )


def encoder_note(experiments):
    """A sentence naming the experiments whose encoder is not the thesis's, else an empty text."""
    others = [name for name, result in experiments.items() if not is_thesis_encoder(name, result)]
    if not others:
        return ""
    which = (
        "" if len(others) == len(experiments) else f" This concerns {_which(others, experiments)}."
    )
    return (
        f"The thesis's numbers are for another encoder: {THESIS_ENCODER} with the weights "
        f"{THESIS_WEIGHTS} (and ResNet-18 for SwiftNet).{which}"
    )
