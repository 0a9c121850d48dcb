"""``report``: the page, in a real browser, at two widths, with text that would like to be run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aoti_eager import cli
from aoti_eager._dispatch.counters import OpStats, add_totals
from aoti_eager._dispatch.run_log import Run, note_run
from aoti_eager._store.verdict import PathTime, Verdict, Verdicts

from ..bundles.conftest import open_store, put

HOSTILE = "aten::<script>parent.document.title='run'</script><img src=x onerror=alert(1)>"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
INSTALL = "no chromium here: apt-get install chromium (as .ci/run does)"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with entries, verdicts, totals and runs."""
    store = open_store(tmp_path / "store")
    for rows, (kernel_us, original_us) in enumerate(((2.0, 8.0), (9.0, 9.1), (50.0, 10.0)), 1):
        found = put(store, "aten::silu", rows=rows)
        assert found.entry.library is not None
        times = {"native/2": PathTime(kernel_us, original_us, original_us, 0.01, True)}
        verdict = Verdict(found.entry.library.sha256, True, True, times)
        Verdicts(store.root).put(found.entry.digest, verdict)
    stats = {
        "aten::silu": OpStats(
            hits=1_234_567, misses=40, declines=7, compiles=3, rare=8, saved_s=12.5,
            declined={"slower": 7},
        ),
        HOSTILE: OpStats(hits=1, declines=3, declined={"<b>bold</b>": 3}),
        "aoti_eager_region::t_" + "0123456789abcdef" * 4: OpStats(hits=10, misses=1),
    }  # fmt: skip
    add_totals(store.root, stats)
    for name in ("train.py", "<i>evil</i>.py", "long_" * 20):
        note_run(store.root, Run(1_800_000_000, 61.0, name, "background", stats))
    return store.root


def written(root: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["report", str(file), "--cache-dir", str(root)]) == 0
    assert str(file) in capsys.readouterr().out
    return file.read_text()


def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(INSTALL)
    return found


def seen(page: str, width: int, tmp_path: Path) -> dict[str, str]:
    """Return what a browser makes of a page in a frame of a width."""
    outer = tmp_path / f"outer-{width}.html"
    outer.write_text(
        f"""<!DOCTYPE html><title>as it was</title><body>
<iframe id="frame" width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page)}">
</iframe><script>
addEventListener("load", () => {{
  const inner = document.getElementById("frame").contentDocument;
  const root = inner.documentElement;
  const style = frame => getComputedStyle(frame);
  document.body.dataset.seen = JSON.stringify({{
    title: document.title, inner: inner.title, wide: String(root.scrollWidth),
    scripts: String(inner.scripts.length), images: String(inner.images.length),
    requests: String(frame.contentWindow.performance.getEntriesByType("resource").length),
    rows: String(inner.querySelectorAll("tr").length),
    bars: String(inner.querySelectorAll("svg").length),
    ink: style(inner.body).color, paper: style(inner.body).backgroundColor,
    text: inner.body.innerText,
  }});
}});
</script></body>"""
    )
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom"]
    done = subprocess.run([*command, outer.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_the_page(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    page = written(root, tmp_path / "page.html", capsys)
    found = seen(page, width, tmp_path)
    assert found["title"] == "as it was"  # Nothing in the page was run.
    assert found["inner"] == "aoti_eager: cache and runs"
    assert int(found["wide"]) <= width, "the page scrolls sideways"
    assert (found["scripts"], found["images"], found["requests"]) == ("0", "0", "0")
    assert (found["rows"], found["bars"]) == ("17", "13")
    assert found["ink"] != found["paper"]
    for text in (HOSTILE, "<b>bold</b>", "<i>evil</i>.py", "1,234,614", "12.5 s", "4.00", "0.20"):
        assert text in found["text"], text


def test_a_page_is_what_its_style_says_in_the_dark(root: Path, tmp_path: Path) -> None:
    """The colours are variables, with other values where the reader prefers the dark."""
    assert cli.main(["report", str(tmp_path / "p.html"), "--cache-dir", str(root)]) == 0
    light, dark = (
        set(re.findall(r"(--\w+): #", part))
        for part in (tmp_path / "p.html").read_text().split("prefers-color-scheme: dark")
    )
    assert light == dark != set()


def test_an_empty_cache_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = written(tmp_path / "none", tmp_path / "page.html", capsys)
    assert "No process has used the cache yet." in page
    assert not (tmp_path / "none").exists()


def test_json_has_the_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", str(tmp_path / "p.html"), "--json", "--cache-dir", str(root)]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calls"] == 1_234_614 + 4 + 11
    assert found["ops"][0]["op"] == "aten::silu"
    assert [round(one["original_us"] / one["kernel_us"], 2) for one in found["kernels"]] == [
        4.0,
        1.01,
        0.2,
    ]
    assert len(found["runs"]) == 3


def test_a_file_that_cannot_be_written_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path / "no" / "p.html"), "--cache-dir", str(root)]) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert "cannot be written" in found
