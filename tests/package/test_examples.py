"""The examples in README.md and docs run as they are written.

Each ```` ```python ```` block is run, those of one page in order and in one namespace, as a script
in a file; and each ```` ```bash ```` block. One that cannot be has a comment on the line before it,
``<!-- not run: why -->``; what is no code is ```` ```text ````.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from ..support.kept_builds import make_cache_dir
from ..support.machine import Machine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A page's examples, and what has to hold after them.
AFTER = {
    "README.md": """
stats = aoti_eager.stats()  # Of other ops, too: what earlier processes of the cache have left.
for op in ("aten::native_layer_norm", "aten::var_mean.correction"):
    assert stats[op].calls == 101, stats
""",
    "background.md": """
stats = aoti_eager.stats()["aten::silu"]
assert stats.calls == 3 and stats.misses >= 1, stats
""",
    "custom_ops.md": """
x, weight = torch.randn(4, 8), torch.rand(8, requires_grad=True)
torch.testing.assert_close(rms_norm(x, weight), rms_norm.__wrapped__(x, weight))
rms_norm(x, weight).sum().backward()
assert "uses" not in str(aoti_eager.explain(rms_norm.op, x, weight.detach()))
rms_norm.unregister()
""",
    "runner.md": """
torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
torch.testing.assert_close(runner.run([x])[0], new_model(x), rtol=1e-4, atol=1e-5)
try:
    runner.update_constant_buffer({"4.bias": torch.zeros(2)})
except LookupError as error:
    assert "always_keep_tensor_constants" in str(error), error
else:
    raise AssertionError("an unknown constant was taken")
runner.close()
""",
}
# What the shell's examples call train.py.
TRAIN = """
import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
x = torch.ones(8, 8, requires_grad=True)
for _ in range(2 * parser.parse_args().epochs):
    torch.nn.functional.silu(x).sum().backward()
"""


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Attributes:
        page: The page's file.
        line: Number of its first line.
        language: What stands behind the fence.
        code: What stands between the fences.
        reason: Why it is not run; ``None`` where it is.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    begin: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = number
            continue
        assert line == "```", f"{page.name}:{number + 1}: a fence is not closed"
        before = lines[begin - 1] if begin else ""
        said = re.fullmatch(r"<!-- not run: (.+) -->", before)
        code = "\n".join(lines[begin + 1 : number]) + "\n"
        language = lines[begin].removeprefix("```")
        found.append(Block(page, begin + 1, language, code, said[1] if said else None))
        begin = None
    assert begin is None, f"{page.name}: a fence is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def to_run(language: str) -> list[Block]:
    return [one for one in BLOCKS if one.language == language and one.reason is None]


def scripts() -> dict[Path, str]:
    """Return the Python code of each page as a script whose lines have the page's numbers."""
    found: dict[Path, str] = {}
    for block in to_run("python"):
        before = found.get(block.page, "")
        found[block.page] = before + "\n" * (block.line - before.count("\n")) + block.code
    return found


def test_every_block_is_of_a_known_language() -> None:
    """A block without one would be passed over, and nobody would know."""
    unknown = [f"{one.page.name}:{one.line}" for one in BLOCKS if one.language not in LANGUAGES]
    assert unknown == []


LANGUAGES = ("python", "bash", "text")


def test_examples_are_found_and_few_are_left_out() -> None:
    assert {page.name for page in scripts()} >= AFTER.keys()
    assert len(to_run("bash")) >= 3
    left_out = [one for one in BLOCKS if one.reason is not None]
    assert len(left_out) <= 8, "run them"
    assert not [one for one in left_out if one.language == "text"]


def test_a_reason_is_read_and_an_open_fence_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- not run: too dear -->\n```python\nx = 1\n```\n\n```bash\nls\n```\n")
    assert [(one.line, one.language, one.code, one.reason) for one in blocks_of(page)] == [
        (3, "python", "x = 1\n", "too dear"),
        (7, "bash", "ls\n", None),
    ]
    page.write_text("```python\nx = 1\n")
    with pytest.raises(AssertionError, match="not closed"):
        blocks_of(page)


@pytest.fixture
def place(
    tmp_path: Path, run_dir: Path, shared_cache_dir: Path, native_library: None
) -> dict[str, str]:
    """The environment of a process with the settings as they ship, and one cache for all pages.

    The C++ path is there, as after ``setup``: a build behind a script starves beside other tests.
    """
    cache = run_dir / "examples-cache"
    with FileLock(run_dir / "examples-cache.lock"):
        if not cache.exists():
            make_cache_dir(cache, shared_cache_dir)
    (tmp_path / "home").mkdir()
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "train.py").write_text(TRAIN)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AOTI_EAGER_", "XDG_"))}
    return {
        **kept,
        "AOTI_EAGER_CACHE_DIR": str(cache),
        # What a process leaves unfinished is not to go on beside the next test.
        "AOTI_EAGER_LINGER_S": "0",
        "HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


# Each page is a module of its own, in one process: torch is imported once.
RUN = """
import runpy, sys
for page in sys.argv[1:]:
    runpy.run_path(page, run_name="__main__")
    print("ran", page)
"""


def run_pages(pages: list[str], place: dict[str, str], directory: Path) -> str:
    """Run the scripts of pages, and return what they printed."""
    code = {page.name: text for page, text in scripts().items()}
    paths = []
    for name in pages:
        paths.append(directory / f"{Path(name).stem}_examples.py")
        paths[-1].write_text(code[name] + AFTER.get(name, ""))
    command = [sys.executable, "-c", RUN, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=place, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ran ") == len(pages)
    assert "AotiEagerWarning" not in done.stderr, done.stderr
    return done.stdout


# What compiles whole models, apart from the rest.
HEAVY = ["runner.md"]
# Beside other tests a worker behind a script starves, and a measurement waits for its calm moment.
AT_ONCE = {"AOTI_EAGER_MODE": "sync", "AOTI_EAGER_GATE": "0"}


def check_light_pages(pages: list[str], place: dict[str, str], directory: Path) -> None:
    printed = run_pages(pages, place, directory)
    assert "aten::native_layer_norm OpStats(hits=" in printed
    assert not list(directory.joinpath("home").iterdir()), "an example has written elsewhere"


def test_the_python_of_readme_and_docs_runs(place: dict[str, str], tmp_path: Path) -> None:
    pages = [page.name for page in scripts() if page.name not in HEAVY]
    check_light_pages(pages, {**place, **AT_ONCE}, tmp_path)


@pytest.mark.full
def test_what_speaks_of_the_background_runs_with_the_settings_as_they_ship(
    place: dict[str, str], tmp_path: Path, machine: Machine
) -> None:
    with machine.alone():
        check_light_pages(["README.md", "background.md"], place, tmp_path)


@pytest.mark.full
def test_the_python_that_compiles_models_runs(place: dict[str, str], tmp_path: Path) -> None:
    run_pages(HEAVY, place, tmp_path)


# Scripts of regions, and options that make them small.
REGIONS = {
    "fused_policy.py": ["--steps", "20"],
    "fused_convolutions.py": ["--size", "8"],
    "fused_encoder.py": ["--width", "16", "--layers", "1", "--length", "4"],
}


@pytest.mark.parametrize(
    "name",
    [
        "fused_policy.py",
        *(pytest.param(one, marks=pytest.mark.full) for one in REGIONS if one != "fused_policy.py"),
    ],
)
def test_a_script_of_regions_runs_and_is_served(
    name: str, place: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "docs" / "examples" / name), *REGIONS[name]]
    environment = {**place, **AT_ONCE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    times, report = done.stdout.splitlines()
    assert re.fullmatch(r"plain [\d.]+ [mu]s, served [\d.]+ [mu]s", times)
    assert re.search(r"  served; \d+ calls, [1-9]\d* served", report)
    assert "Warning" not in done.stderr, done.stderr


def test_every_script_of_regions_is_run() -> None:
    names = {path.name for path in (ROOT / "docs" / "examples").glob("fused_*.py")}
    assert names - {"fused_adamw.py"} == REGIONS.keys()


@pytest.mark.full
@pytest.mark.parametrize("block", to_run("bash"), ids=lambda one: f"{one.page.stem}-{one.line}")
def test_a_command_runs(block: Block, place: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(command, capture_output=True, text=True, env=place, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AotiEagerWarning" not in done.stderr, done.stderr
