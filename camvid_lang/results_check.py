"""What a results.json may hold: everything that is shown of it later is checked when it is read."""

from collections.abc import Callable, Mapping

from camvid_lang.errors import is_printable

__all__ = ["what_is_wrong"]

LARGEST = 1e12  # no number of a result comes near it

Check = Callable[[object], bool]


def _number(value: object) -> bool:
    """None, or a number that can be drawn."""
    if value is None:
        return True
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and abs(value) <= LARGEST  # also refuses NaN


def _text(value: object) -> bool:
    return isinstance(value, str) and is_printable(value)


def _plain(value: object) -> bool:
    """A setting or the like, to be shown as it stands."""
    return isinstance(value, bool) or _number(value) or _text(value)


def _mapping(check: Check) -> Check:
    def checked(value: object) -> bool:
        return isinstance(value, Mapping) and all(_text(k) and check(v) for k, v in value.items())

    return checked


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


_numbers = _mapping(_number)
CHECKS: dict[str, Check] = {
    "experiment": _text,
    **dict.fromkeys(("accuracy", "mean_accuracy", "miou", "miou_train", "seconds"), _number),
    "iou": _numbers,
    "thesis": _mapping(_either(_number, _text, _numbers)),
    "settings": _mapping(_plain),
    "phrases": _either(lambda value: value is None, _mapping(_list(lambda v: isinstance(v, str)))),
    "data": _mapping(_either(_plain, _list(_number))),
    "encoder": _mapping(_plain),
    "versions": _mapping(_plain),
    "device": _text,
    "command": lambda value: isinstance(value, str),
    "history": _list(_numbers),
    "confusion": _list(_list(_number)),
}
# What the thesis gives no number for is still shown by these.
_NUMBERS_OF_THE_THESIS = ("accuracy", "mean_accuracy", "miou", "miou_train")


def what_is_wrong(results: object) -> str:
    """The key of a run's results that does not hold what a run writes there; "" if all do.

    Keys that are absent are not missed, but for `experiment` and `settings`; others are let be.
    """
    if not isinstance(results, Mapping):
        return "the whole"
    for key in ("experiment", "settings"):
        if key not in results:
            return key
    for key, check in CHECKS.items():
        if key in results and not check(results[key]):
            return key
    thesis, size = results.get("thesis", {}), results.get("data", {}).get("size", [])
    if not all(_number(thesis.get(key)) for key in _NUMBERS_OF_THE_THESIS):
        return "thesis"
    if not _numbers(thesis.get("iou", {})):
        return "thesis"
    if not isinstance(size, list):
        return "data"
    if any(not isinstance(entry.get("epoch"), int) for entry in results.get("history", [])):
        return "history"
    lengths = {len(row) for row in results.get("confusion", [])}
    return "confusion" if len(lengths) > 1 else ""
