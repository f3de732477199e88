"""Fetching one file over HTTP into a folder: resumable, and never mistaken for whole when cut."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from camvid_lang.errors import InputError
from camvid_lang.pictures import one_line
from camvid_lang.progress import progress

__all__ = ["fetch_drive", "fetch_url"]

CHUNK = 256 * 1024
AGAIN = "run the same command again to resume"


def _is_page(content_type: str, head: bytes) -> bool:
    start = head.lstrip()[:15].lower()
    return content_type.startswith("text/html") or start.startswith((b"<!doctype html", b"<html"))


def _refuse_page(source: str) -> InputError:
    return InputError(
        one_line(
            f"{source}: a web page came instead of an archive (sign-in, quota or warning page?); "
            "fetch the archive by hand and give it with --from"
        )
    )


def fetch_url(url: str, target: Path, timeout: float = 60.0) -> None:
    """Downloads `url` to `target`, by way of `target` + ".part".

    A part left by a cut download is resumed with an HTTP range request; where the server does not
    honour it, the download starts over. The declared length is checked. `timeout` is seconds
    without any data. Raises `InputError` for a refused, cut or empty download and for a web page.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(one_line(f"{url}: an http or https address is needed"))
    part = target.with_name(f"{target.name}.part")
    held = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "camvid-lang", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        ) as answer:
            _receive(url, answer, part, held)
    except urllib.error.HTTPError as error:
        if error.code == 416 and held:  # the part is no beginning of what is there now
            part.unlink()
            return fetch_url(url, target, timeout)
        raise InputError(one_line(f"{url}: HTTP {error.code} {error.reason}")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(one_line(f"{url}: download failed ({reason}); {AGAIN}")) from None
    os.replace(part, target)


def _receive(url: str, answer: http.client.HTTPResponse, part: Path, held: int) -> None:
    resumed = answer.status == 206
    if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
        part.unlink()
        raise InputError(one_line(f"{url}: the server resumed at a wrong place; {AGAIN}"))
    held = held if resumed else 0
    length = answer.headers.get("Content-Length", "")
    total = held + int(length) if length.isdigit() else None
    chunk = answer.read(CHUNK)
    if not resumed and _is_page(answer.headers.get("Content-Type", ""), chunk):
        raise _refuse_page(url)
    with (
        part.open("ab" if resumed else "wb") as file,
        progress(total=total, initial=held, unit="B", unit_scale=True, desc="download") as bar,
    ):
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = answer.read(CHUNK)
        size = file.tell()
    if size == 0 or (total is not None and size != total):
        raise InputError(
            one_line(f"{url}: cut after {size} of {total or 'an unknown number of'} bytes; {AGAIN}")
        )


def fetch_drive(identity: str, target: Path) -> None:
    """Downloads the Google Drive file with this id to `target` through gdown.

    Raises `InputError` where gdown is absent or refused, and for a web page.
    """
    try:
        import gdown
    except ImportError:
        raise InputError("--drive needs gdown: `pip install gdown`") from None
    part = target.with_name(f"{target.name}.part")
    source = f"Google Drive id {identity}"
    try:
        done = gdown.download(id=identity, output=str(part), resume=True)
    except Exception as error:  # gdown's own, those of requests, and plain OSErrors
        raise InputError(one_line(f"{source}: {error}")) from None
    if not done or not part.is_file():
        raise InputError(f"{source}: nothing came; is it shared with everyone?")
    with part.open("rb") as file:
        page = _is_page("", file.read(64))
    if page:
        part.unlink()
        raise _refuse_page(source)
    os.replace(part, target)
