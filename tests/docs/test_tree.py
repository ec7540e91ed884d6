"""The tree speaks of the project alone: no other machine, no private host, nothing left to do."""

import re
from pathlib import Path

import pytest

from tests.support.markdown import ROOT, tracked_files

PUBLIC_HOSTS = {
    "127.0.0.1", "localhost", "host", "kafka", "redis", "qdrant", "collector", "streams", "trainer", "indexer",
    "search", "page", "www.apache.org", "maven.apache.org", "www.w3.org", "json-schema.org", "arxiv.org", "doi.org",
    "github.com", "raw.githubusercontent.com", "keepachangelog.com", "semver.org", "www.google.com",
}  # fmt: skip
"""Hosts that may stand in an address: our own processes, standards, papers; `*.example` and `a.shop` are made up."""
MADE_UP = re.compile(r".*\.(example|shop|invalid|test|evil)|[a-z]|\{.*")
LEFT_OVER = re.compile("|".join(rf"\b{word}\b" for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X")))
PERSONAL = re.compile(r"(?<![\w.])/(?:home|Users)/\w+")
REGISTRY_OPTION = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host")


def text_of(path: Path) -> str | None:
    """Return a file's text, None where it is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


TEXTS = {path: text for path in tracked_files() if (text := text_of(path)) is not None}


def found(pattern: re.Pattern[str]) -> list[str]:
    """Return file and finding of every match in the tree."""
    return [f"{path}: {match[0]}" for path, text in TEXTS.items() for match in pattern.finditer(text)]


def test_addresses_name_public_hosts_only() -> None:
    """Every address in the tree is one that anybody can reach, or one of our own processes."""
    hosts = {
        (str(path), host.lower())
        for path, text in TEXTS.items()
        for host in re.findall(r"\b(?:https?|redis|rediss)://(?:[^/\s@'\"]*@)?([A-Za-z0-9._-]*[A-Za-z0-9])", text)
    }
    assert sorted(one for one in hosts if one[1] not in PUBLIC_HOSTS and not MADE_UP.fullmatch(one[1])) == []


PLACES = {"checkout": ROOT, "home": Path.home()}


@pytest.mark.parametrize("name", [name for name, folder in PLACES.items() if folder != folder.parent])
def test_no_path_of_this_machine(name: str) -> None:
    """Neither the place of this checkout nor the home folder stands anywhere in the tree, as the start of a path."""
    assert found(re.compile(rf"(?<![^\s\"'`=:,(\[]){re.escape(f'{PLACES[name]}/')}")) == []


def test_no_home_folder_of_anybody() -> None:
    """No path leads into a person's home folder."""
    assert found(PERSONAL) == []


def test_nothing_points_to_a_registry() -> None:
    """Where packages come from is the machine's own setting: no lock and no script names a registry."""
    assert [one for one in found(REGISTRY_OPTION) if not one.startswith("tests/")] == []


def test_nothing_is_left_to_do() -> None:
    """What is not done is an issue, not a note in the code."""
    assert found(LEFT_OVER) == []


def test_licence_is_the_one_that_the_package_names() -> None:
    """LICENSE is the Apache License 2.0, as pyproject.toml says."""
    assert 'license = "Apache-2.0"' in TEXTS[Path("pyproject.toml")]
    assert "Version 2.0, January 2004" in TEXTS[Path("LICENSE")]


def test_nothing_is_unpickled() -> None:
    """No code of ours loads a form that can execute code: models and checkpoints are safetensors and JSON."""
    unsafe = re.compile(
        r"\bimport (?:pickle|dill|joblib|shelve|marshal)\b|\btorch\.load\(|allow_pickle=True|yaml\.load\("
    )
    assert [one for one in found(unsafe) if not one.startswith("tests/docs/")] == []


def test_tests_are_collected_from_folders_that_exist(pytestconfig: pytest.Config) -> None:
    """A folder that is not there is passed over in silence, and its tests and examples with it."""
    assert [path for path in pytestconfig.getini("testpaths") if not (ROOT / path).is_dir()] == []
