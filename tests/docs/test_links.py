"""Nothing in the documentation points into the void: links, anchors, named files, named tests, decision records."""

import ast
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.markdown import ROOT, anchors, code_spans, documents, links, prose, sections, tracked_files

TOPS = {path.parts[0] for path in tracked_files() if len(path.parts) > 1}
MADE_AT_RUN_TIME = (".millrace/", ".venv/", ".cache/")


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every link inside the project leads to a file that is there and, where it names one, to a heading of it."""
    broken = []
    for target in links(path):
        parts = urlsplit(target)
        if parts.scheme:
            continue
        place = (path.parent / parts.path).resolve() if parts.path else path
        if not place.exists() or (parts.fragment and parts.fragment not in anchors(place)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_code_exist(path: Path) -> None:
    """A path in backticks that begins with one of our folders is there."""
    named = [span.split("::")[0].rstrip("/") for span in code_spans(path) if span.split("/")[0] in TOPS and "/" in span]
    plain = [span for span in named if re.fullmatch(r"[\w./-]+", span) and not span.startswith(MADE_AT_RUN_TIME)]
    assert [span for span in plain if not (ROOT / span).exists()] == []


def test_tests_named_in_the_documentation_exist() -> None:
    """A promise that names its test names one that pytest would run."""
    missing = []
    for path in documents():
        for file, name in re.findall(r"`(tests/[\w./-]+\.py)::(\w+)`", prose(path)):
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            if name not in functions:
                missing.append((path.name, f"{file}::{name}"))
    assert missing == []


def test_decision_records_are_listed() -> None:
    """docs/adr/README.md lists every record once, by its number and title."""
    folder = ROOT / "docs/adr"
    records = sorted(path for path in folder.glob("[0-9]*.md"))
    titles = [path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for path in records]
    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", prose(folder / "README.md"), re.MULTILINE)
    assert listed == [(title, path.name) for title, path in zip(titles, records, strict=True)]


def test_every_page_can_be_found_from_the_readme() -> None:
    """Each document is linked from the README or from a document that the README links."""
    reached, open_pages = set[Path](), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        if page not in reached:
            reached.add(page)
            targets = [urlsplit(target).path for target in links(page) if not urlsplit(target).scheme]
            open_pages += [(page.parent / name).resolve() for name in targets if name.endswith(".md")]
    assert sorted(set(documents()) - reached) == []


def test_every_promise_names_its_test() -> None:
    """Each promise of docs/guarantees.md, in bold at the beginning of its paragraph, says which test holds it."""
    promised, _, _ = prose(ROOT / "docs/guarantees.md").partition("## Not promised")
    promises = [part for part in promised.split("\n\n") if part.startswith("**")]
    assert len(promises) >= 15
    assert [part.splitlines()[0] for part in promises if not re.search(r"`tests/[\w./]+\.py::\w+`", part)] == []


def test_code_points_to_documents_that_are_here() -> None:
    """A document named in a docstring, a comment or a message lies in this tree, with the section that is named."""
    here = {path.name for path in documents()}
    missing = set()
    for path in tracked_files():
        if path.suffix in {".py", ".toml", ".yml", ".sh"}:
            text = (ROOT / path).read_text(encoding="utf-8")
            missing |= {f"{path}: {name}" for name in re.findall(r"[\w/-]+\.md\b", text) if Path(name).name not in here}
            for name, heading in re.findall(r'(docs/[\w-]+\.md), "([^"]+)"', text):
                if heading not in sections(ROOT / name):
                    missing.add(f"{path}: {name}, {heading}")
    assert sorted(missing) == []
