"""Set-up: what it finds out before it acts, and what it says where it may not act."""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.local import REPOSITORY, bootstrap, kafka_jars
from deploy.local.bootstrap import JAVA, MAVEN, REDIS, Layout, SetupError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Give a repository in a path with a space, with locks and a virtual environment that works."""
    root = tmp_path / "a clone"
    made = Layout(root)
    (root / "locks").mkdir(parents=True)
    for path in (made.lock("uv"), made.lock("all"), root / "pyproject.toml"):
        path.write_text("x\n", encoding="ascii")
    made.cache.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.venv], check=True)
    return made


def test_a_virtual_environment_that_works_is_kept(layout: Layout) -> None:
    """The second time nothing is made anew."""
    assert bootstrap.venv_is_good(layout)


def test_a_virtual_environment_that_was_moved_is_made_anew(layout: Layout) -> None:
    """The scripts of a moved environment point to where it was, so it counts as broken."""
    moved = Layout(layout.root.rename(layout.root.with_name("moved")))
    assert not bootstrap.venv_is_good(moved)


def test_a_virtual_environment_without_its_python_is_made_anew(layout: Layout) -> None:
    """A system upgrade that takes the interpreter away leaves an environment that counts as broken."""
    layout.python.unlink()
    assert not bootstrap.venv_is_good(layout)


@pytest.mark.parametrize("path", ["locks/uv.txt", "locks/all.txt", "pyproject.toml"])
def test_packages_are_installed_again_when_what_they_depend_on_changes(layout: Layout, path: str) -> None:
    """The stamp holds for these locks and this project file alone, which names where the command begins."""
    assert not bootstrap.packages_are_installed(layout)
    layout.stamp.write_text(layout.fingerprint(), encoding="ascii")
    assert bootstrap.packages_are_installed(layout)
    (layout.root / path).write_text("y\n", encoding="ascii")
    assert not bootstrap.packages_are_installed(layout)


def test_a_failed_command_is_one_line_with_what_it_said(layout: Layout) -> None:
    """The message names the command and what it said last, and it was tried twice."""
    script = "import sys; print('registry is away'); sys.exit(1)"
    with pytest.raises(SetupError, match="registry is away") as raised:
        bootstrap.run(layout, [sys.executable, "-c", script])
    assert "\n" not in str(raised.value)
    assert layout.log.read_text(encoding="ascii").count("\nregistry is away") == bootstrap.ATTEMPTS


def test_a_command_that_works_at_the_second_try_is_no_failure(layout: Layout) -> None:
    """A registry's hiccup does not end set-up."""
    script = "import pathlib, sys; p = pathlib.Path('once'); old = p.exists(); p.touch(); sys.exit(not old)"
    bootstrap.run(layout, [sys.executable, "-c", script])
    assert (layout.root / "once").exists()


def test_what_is_missing_is_named_for_debian_macos_and_docker() -> None:
    """One line says what to install wherever people are."""
    venv = bootstrap.venv_need((3, 12))
    line = bootstrap.how_to_install([venv, JAVA, MAVEN, REDIS])
    assert "sudo apt-get install python3-venv default-jre-headless maven redis-server" in line
    assert "brew install python@3.12 openjdk@17 maven redis" in line
    assert "docker compose up" in line
    assert "\n" not in line


def test_where_nothing_may_be_installed_set_up_says_what_to_install(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without root and without sudo nothing is tried."""
    monkeypatch.setattr(bootstrap, "privilege", lambda: None)
    with pytest.raises(SetupError, match="install redis-server"):
        bootstrap.install_system_packages(layout, [REDIS])


def test_packages_come_in_one_go_after_an_update(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of packages is refreshed first, and the newest Java that the system knows is taken."""
    commands: list[str] = []
    monkeypatch.setattr(bootstrap, "run", lambda layout, command: commands.append(" ".join(command)))
    monkeypatch.setattr(bootstrap, "privilege", lambda: ["sudo", "-n"])
    monkeypatch.setattr(bootstrap, "_is_known", lambda name: name != "openjdk-21-jre-headless")
    bootstrap.install_system_packages(layout, [JAVA, REDIS])
    assert [command.endswith("update") for command in commands] == [True, False]
    assert commands[1].endswith("install -y --no-install-recommends openjdk-17-jre-headless redis-server")
    assert all(command.startswith("sudo -n env DEBIAN_FRONTEND=noninteractive apt-get") for command in commands)


def test_only_what_is_missing_is_asked_for(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maven is needed only while Kafka's jars are not here."""
    monkeypatch.setattr(kafka_jars, "find_java", lambda: "java")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(kafka_jars, "are_complete", lambda: True)
    assert bootstrap.missing_packages(layout) == [REDIS]
    monkeypatch.setattr(kafka_jars, "are_complete", lambda: False)
    assert bootstrap.missing_packages(layout) == [MAVEN, REDIS]


def test_a_python_that_does_not_suit_is_refused_in_one_line() -> None:
    """Naming a Python that is not there ends set-up with what to install, before anything is touched."""
    script = REPOSITORY / "deploy" / "local" / "setup.sh"
    done = subprocess.run(
        ["sh", script],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere/python3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "/nowhere/python3 is not Python 3.11, 3.12 or 3.13" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_lock_agrees_with_the_lock_of_all(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--upgrade` moves, it moves in one place: the images' locks keep to what the developer's machine has."""
    commands: dict[str, list[str]] = {}

    def run(command: Sequence[str | Path], *, check: bool, cwd: Path) -> None:
        """Note a command by the lock that it writes, instead of running it."""
        assert (check, cwd) == (True, layout.root)
        words = [str(word) for word in command]
        commands[words[-1]] = words

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(kafka_jars, "copy_by_maven", lambda folder: None)
    monkeypatch.setattr(kafka_jars, "write_checksums", lambda folder: None)
    bootstrap.lock_everything(layout, ["--upgrade"])
    assert list(commands) == ["locks/uv.txt", "locks/all.txt", "locks/full.txt", "locks/light.txt"]
    assert all("--generate-hashes" in command for command in commands.values())
    assert [name for name, command in commands.items() if "--upgrade" in command] == ["locks/uv.txt", "locks/all.txt"]
    for name in ("locks/full.txt", "locks/light.txt"):
        assert "--constraint locks/all.txt" in " ".join(commands[name])


def test_every_lock_is_of_extras_that_exist() -> None:
    """A renamed extra is noticed here, not when the next lock is made."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, extras in bootstrap.LOCKED_EXTRAS.items():
        assert Layout(REPOSITORY).lock(name).exists()
        assert set(extras) <= project["optional-dependencies"].keys()


def test_no_lock_names_a_registry() -> None:
    """Locks hold names, versions and hashes alone, so that every machine uses its own registry."""
    for path in (REPOSITORY / "locks").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
    assert "--hash=sha256:" in (REPOSITORY / "locks" / "uv.txt").read_text(encoding="utf-8")
