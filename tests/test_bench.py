"""The benchmark measures what it says, and the exact head is faster and leaner."""

import json

import pytest

from benchmarks import bench
from benchmarks import bench as budget
from benchmarks.bench import (
    Case,
    footprint_here,
    format_row,
    fresh_process,
    largest_batch,
    parse_bytes,
    summary,
    sweep_here,
)
from camvid_lang.cli import main
from camvid_lang.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15GB", 15 * 2**30), ("800 MB", 800 * 2**20), ("1.5g", 3 * 2**29), ("4096", 4096)],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "15 parsecs", "1e3"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InputError, match="15GB"):
        parse_bytes(text)


@pytest.mark.slow
def test_bench_compares_draws_and_finds_the_exact_head_faster_and_leaner(tmp_path, capsys):
    file, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["--experiment", "swiftnet", "--json", str(file), "--figure", str(figure)]
    assert main(["bench", *arguments]) == 0
    results = json.loads(file.read_text())
    assert capsys.readouterr().out.strip() == summary(results)
    for what in ("head", "step", "inference"):
        for style in ("thesis", "ours"):
            assert results[what][style]["seconds"] > 0
            assert results[what][style]["extra_bytes"] > 0
    thesis, ours = results["head"]["thesis"], results["head"]["ours"]
    # Half of what is measured on a quiet machine: other work may share this one.
    assert thesis["seconds"] > 4 * ours["seconds"]
    assert thesis["extra_bytes"] > 10 * ours["extra_bytes"]
    assert 0 < results["roofline"]["share_of_matmul"] < 1.5
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("most", [0, 2, 3, 7, 8, 100])
def test_the_largest_batch_stays_within_its_budget(most, monkeypatch):
    asked = []

    def footprint(case):
        asked.append(case.batch)
        assert case.batch <= max(2, 2 * most)  # never far beyond: the machine may not have it
        return None if case.batch > 2 * most else 10 * case.batch

    monkeypatch.setattr(budget, "footprint_here", footprint)
    found = largest_batch(Case("step", "ours", device="cuda"), budget=10 * most)
    assert most - max(1, most // 8) <= found["batch"] <= most if most >= 2 else not found["batch"]
    assert found["batch"] in (0, *asked)  # measured, not extrapolated
    assert len(asked) < 14


@pytest.mark.slow
def test_a_footprint_grows_with_the_batch():
    def footprint(batch):  # in a process of its own, as the second in one finds the model there
        case = Case("step", "thesis", "swiftnet", batch=batch, size=(96, 96))
        with fresh_process() as pool:
            return pool.submit(footprint_here, case).result()

    assert footprint(32) > footprint(2) + 30 * 96 * 96 * 64  # at the very least one map a crop


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_size_and_batch(monkeypatch):
    monkeypatch.setattr(bench, "largest_batch", lambda case, limit: {"batch": 2, "bytes": limit})
    rows = sweep_here(Case("step", "ours", "swiftnet", repeats=1), 10**9, [(64, 64), (64, 96)], [2])
    assert [(row["size"], "largest_batch" in row) for row in rows] == [
        ((64, 64), False),
        ((64, 64), True),
        ((64, 96), False),
        ((64, 96), True),
    ]
    assert all("images/s" in format_row(row, 1e11) for row in rows[::2])
    assert all("budget: 2" in format_row(row, 1e11) for row in rows[1::2])
