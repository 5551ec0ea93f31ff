"""The page of results: it is what the raw files say, with a sentence where there are none."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import publish, report  # noqa: E402


def test_results_are_what_the_raw_files_say(tmp_path):
    """`make results` changes nothing."""
    page, copied = ROOT / "docs" / "results.md", tmp_path / "results.md"
    copied.write_text(page.read_text())
    assert publish.main(["--page", str(copied)]) == 0
    assert copied.read_text() == page.read_text()


def test_without_a_gpu_a_sentence_replaces_the_table(tmp_path):
    """Only the folder no-gpu has results; `make results` writes the sentence once, however often it runs."""
    (tmp_path / "results" / "no-gpu").mkdir(parents=True)
    page = tmp_path / "page.md"
    page.write_text("\n".join(["# Mine", *publish.MARKS, "the end"]))
    for _ in range(2):
        assert publish.main(["--results", str(tmp_path / "results"), "--page", str(page)]) == 0
    first, last = publish.MARKS
    assert page.read_text() == "\n".join(["# Mine", first, publish.NO_GPU, last, "the end"])


def test_table_says_what_failed():
    empty = {"environment": {"commit": report.commit()}, "ceilings": {}, "rows": [], "left out": ["b"]}
    text = report.table({**empty, "failed": {"a": "Error: x\ny"}})
    assert "- failed: a: Error: x y" in text
    assert "- left out for want of time: b" in text
