"""Every code block of README, docs and benchmarks runs, or says why not and is looked at; what pages name exists.

Blocks of a page run in order, in an empty folder and one namespace, in this process; `documentation_fixtures` says how
a fence is read. So that all of them together take less than 100 s of CPU, `SMALL` there makes every training four
updates and every log a dozen episodes: that the blocks run is shown here, and not how well a policy becomes. A server
is started on a free port, which the blocks after it get in place of 8000. An export that an earlier page made by the
same command is copied. The pages run without shape checks, since they export.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from documentation_fixtures import (
    COMMANDS,
    ROOT,
    Command,
    PageRun,
    blocks_of,
    commands_of,
    flags_of,
    indented_blocks,
    inline_commands,
    look_at,
    look_at_inline,
    parse,
    shrunk,
)

from qtransformer.deploy.controller import FAULTS
from qtransformer_datasets.finding import CODES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
GUIDE = ROOT / "docs" / "datasets.md"


@pytest.mark.export
@pytest.mark.timeout(900)  # a training, a server and an export or two, on a busy machine
@pytest.mark.parametrize("page", [each for each in PAGES if blocks_of(each)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    with PageRun() as run:
        for block in blocks_of(page):
            run.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is_and_what_it_names_exists(page: Path):
    for block in blocks_of(page):
        if block.language == "bash":
            commands = list(commands_of(block))
            assert commands, f"{block.where}: no command in it"
            for command in commands:
                look_at(command)
        elif block.language == "python":
            compile(block.text, block.where, "exec")
    assert indented_blocks(page) == [], "code without a fence is shown and never checked; fence it"


def test_commands_in_the_text_name_what_exists():
    found = [command for page in (*PAGES, ROOT / "CONTRIBUTING.md") for command in inline_commands(page)]
    assert len(found) > 40
    for command in found:
        look_at_inline(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_local_links_lead_somewhere(page: Path):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name}: {link} is none of {anchors_of(target)}"


def anchors_of(page: Path) -> list[str]:
    """Returns the names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_lists_every_page():
    readme = PAGES[0].read_text()
    assert [page.name for page in PAGES[1:-1] if f"docs/{page.name}" not in readme] == []


def test_the_guide_names_every_code_of_the_check():
    rows = re.findall(r"^\| `([\w-]+)` \| (error|warning) \|", GUIDE.read_text(), flags=re.MULTILINE)
    assert dict(rows) == CODES


# --- what single pages name -------------------------------------------------------------------------------------------


@cache
def messages_of_the_code() -> list[str]:
    """Returns every text of our sources, the parts of an f-string joined by a mark for what is filled in."""
    found = []
    for folder in ("qtransformer", "envs", "datasets"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def is_said(message: str) -> bool:
    """Returns whether a text of the code holds the message; `...` in it stands for anything that is filled in."""
    pattern = ".*?".join(re.escape(part.strip()) for part in message.split("..."))
    return any(re.search(pattern, text, re.DOTALL) for text in messages_of_the_code())


def quotations() -> list[str]:
    quoted = re.findall(r"(?:^> .*\n)+", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    return [" ".join(line.removeprefix("> ") for line in each.splitlines()) for each in quoted]


def test_messages_of_the_troubleshooting_are_those_of_the_code():
    assert len(quotations()) > 20
    assert [each for each in quotations() if not is_said(each)] == []
    assert not is_said("loss of ... is far too pretty")


def test_counters_of_the_troubleshooting_are_those_of_the_controller():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(FAULTS) - {"not_reset", "latched"}  # these two say themselves what to do


NAMES = re.compile(r"`((?:qtransformer|qtransformer_datasets)(?:\.\w+)+)`")


@pytest.mark.parametrize("page", ["method", "glossary", "architecture"])
def test_names_of_the_code_resolve(page: str):
    names = NAMES.findall((ROOT / "docs" / f"{page}.md").read_text())
    assert len(names) > 20 or page == "architecture"
    for name in names:
        resolve(name)


def resolve(name: str) -> object:
    """Returns the module, class, function or field of that dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_a_name_that_is_not_there_does_not_resolve():
    with pytest.raises(AttributeError, match="nothing_targets"):
        resolve("qtransformer.backup.nothing_targets")


@pytest.mark.parametrize("page", ["method", "glossary", "troubleshooting", "your-own-robot", "threat-model"])
def test_flags_in_the_text_exist(page: str):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    flags = {flag for code in re.findall(r"`([^`\n]+)`", text) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    known = {"--self-test"}.union(*map(flags_of, COMMANDS))
    assert flags
    assert flags - known == set()


def test_values_of_flags_in_the_glossary_parse():
    for flag, value in re.findall(r"`(--[\w-]+) (\w+)`", (ROOT / "docs" / "glossary.md").read_text()):
        parse(Command(["qtransformer", "train", "--dataset", "log", "--out", "run", flag, value], "", "glossary.md"))


def test_tests_of_the_threat_model_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "threat-model.md").read_text())
    assert len(named) > 25
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


# --- the rules bite ---------------------------------------------------------------------------------------------------


def page_of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "page.md").write_text(text)
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```sh\nls\n```\n", "'sh' must be one of"),
        ("```\nls\n```\n", "fence '' must be a language"),
        ("```bash slow\nls\n```\n", "fence 'bash slow' must be a language"),
        ("```bash no-run\nls\n```\n", "fence 'bash no-run' must be a language"),
        ("```text no-run: why\nls\n```\n", "no-run: why"),
        ("```bash output\nls\n```\n", "output"),
        ("```bash\nls\n", "a fence is left open"),
    ],
)
def test_fences_that_say_too_little(tmp_path: Path, text: str, message: str):
    with pytest.raises(AssertionError, match=re.escape(message)):
        blocks_of(page_of(tmp_path, text))


def test_blocks_are_taken_apart(tmp_path: Path):
    text = "# T\n\n```bash no-run: long\nmake demo\n```\n- a\n  ```python\n  x = 1\n  ```\n\n```text\n    a\n```\n"
    page = page_of(tmp_path, text)
    expected = [("bash", "no-run: long", 3, "make demo\n"), ("python", "", 7, "x = 1\n"), ("text", "", 11, "    a\n")]
    assert [(each.language, each.mark, each.line, each.text) for each in blocks_of(page)] == expected
    assert indented_blocks(page) == []
    assert indented_blocks(page_of(tmp_path, "Text:\n\n    code\n")) == ["page.md:3:     code"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("qtransformer flatten logs", "does not parse"),
        ("qtransformer train --dataset a --out b --steeps 3", "does not parse"),
        ("python train.py --dataset a", "does not parse"),
        ("make tea", "the Makefile has"),
        ("python benchmarks/nothing.py", "there is no benchmarks/nothing.py"),
        ("python benchmarks/marks.py --nothing", "marks.py knows no --nothing"),
        ("pip install '.[everything]'", "the extras are"),
        ("curl https://example.org", "nothing is known of 'curl'"),
    ],
)
def test_commands_that_do_not_exist(tmp_path: Path, line: str, message: str):
    (block,) = blocks_of(page_of(tmp_path, f"```bash no-run: a test\n{line}\n```\n"))
    (command,) = commands_of(block)
    with pytest.raises(AssertionError, match=re.escape(message)):
        look_at(command)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("qtransformer flatten LOG", "the commands are ['collect', "),
        ("qtransformer train --dataset LOG --steeps\n3", "train knows no ['--steeps']"),
        ("evaluate [--json] --steps 3", None),  # of some other program, for all we know
        ("evaluate --json --steps 3", "evaluate knows no ['--steps']"),
        ("python train.py --nothing", "train knows no ['--nothing']"),
        ("latency.py --nothing", "latency.py knows no --nothing"),
        ("benchmarks/nothing.py", "there is no benchmarks/nothing.py"),
        ("make tea", "the Makefile has"),
        ("export the run --now", None),
        ("make", None),
    ],
)
def test_commands_in_the_text_that_do_not_exist(tmp_path: Path, span: str, message: str | None):
    found = list(inline_commands(page_of(tmp_path, f"Say `{span}`, or ``x`` `` ` ``.\n```bash\nls `date`\n```\n")))
    assert len(found) == (message is not None)
    if message is not None:
        with pytest.raises(AssertionError, match=re.escape(message)):
            look_at_inline(found[0])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("```python\nassert 1 == 2\n```\n", AssertionError, None),
        ("```bash\nqtransformer inspect nothing\n```\n", AssertionError, "ended with 2"),
        ("```bash\nls\n```\n", AssertionError, "mark the block with `no-run: why`"),
        ("```json\n{\n```\n", ValueError, None),
        ("```python\nprint('a  b')\n```\n```text output\na ... c\n```\n", AssertionError, "was never printed: a ... c"),
        ("```python no-run: why\nfrom qtransformer.backup import x\n```\n", AssertionError, r"has no \['x'\]"),
    ],
)
def test_blocks_that_fail(tmp_path: Path, monkeypatch, text: str, error: type[Exception], message: str | None):
    blocks = blocks_of(page_of(tmp_path, text))
    monkeypatch.chdir(tmp_path)
    *before, last = blocks
    with PageRun() as run:
        for block in before:
            run.run(block)
        with pytest.raises(error, match=message):
            run.run(last)


def test_small_numbers_are_used():
    given = ["train", "--steps", "3000", "--evaluate-every", "500"]
    assert shrunk(given) == [*given, "--steps", "4", "--evaluate-every", "2"]
    assert shrunk(["inspect", "log"]) == ["inspect", "log"]
