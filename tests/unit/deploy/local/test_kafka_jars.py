"""Java and Kafka's jars: what is locked is what is used, whole or not at all."""

import hashlib
import re
from pathlib import Path

import pytest

from deploy.local import kafka_jars
from deploy.local.kafka_jars import JarError

CONTENT = b"a jar"
LOCKED = {"kafka.jar": hashlib.sha256(CONTENT).hexdigest()}


def test_the_pom_and_the_code_name_the_same_version() -> None:
    """The folder is named by the version that Maven fetches."""
    assert f"<kafka.version>{kafka_jars.KAFKA_VERSION}</kafka.version>" in kafka_jars.POM.read_text(encoding="utf-8")


def test_every_version_in_the_pom_is_pinned() -> None:
    """No range, no LATEST, and the plugin that fetches is pinned like the rest."""
    versions = re.findall(r"<version>([^<]+)</version>", kafka_jars.POM.read_text(encoding="utf-8"))
    assert len(versions) == 4
    assert all(re.fullmatch(r"[\d.]+|\$\{kafka\.version\}", version) for version in versions)


def test_the_checksums_hold_the_broker_and_whole_digests() -> None:
    """The list covers Kafka itself, and each digest is one of sha256."""
    checksums = kafka_jars.read_checksums()
    assert f"kafka_2.13-{kafka_jars.KAFKA_VERSION}.jar" in checksums
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in checksums.values())


def test_the_locked_jars_pass(tmp_path: Path) -> None:
    """A folder with exactly the locked files is accepted."""
    (tmp_path / "kafka.jar").write_bytes(CONTENT)
    kafka_jars.verify(tmp_path, LOCKED)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"kafka.jar": b"another jar"}, "not the file that was locked"),
        ({}, "lacks kafka.jar"),
        ({"kafka.jar": CONTENT, "more.jar": b""}, "holds more.jar"),
    ],
)
def test_a_folder_that_is_not_what_was_locked_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    """A jar that differs, is missing or is one too many stops set-up with its name."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(JarError, match=message):
        kafka_jars.verify(tmp_path, LOCKED)


def test_jars_that_fail_the_check_are_never_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bad download the folder does not exist, so the next set-up tries again."""

    def copy(folder: Path, *, maven: str) -> None:
        """Bring a jar that is not the locked one."""
        folder.mkdir()
        (folder / "kafka.jar").write_bytes(b"another jar")

    monkeypatch.setattr(kafka_jars, "copy_by_maven", copy)
    with pytest.raises(JarError):
        kafka_jars.fetch(tmp_path / "kafka" / "1")
    assert list((tmp_path / "kafka").iterdir()) == []


def test_mavens_failure_is_its_own_first_error(tmp_path: Path) -> None:
    """Where Maven fails, the line that says why is shown, not its whole output."""
    maven = tmp_path / "mvn"
    maven.write_text(
        "#!/bin/sh\necho '[INFO] hm'; printf '\\033[0m[ERROR] no route to registry\\n[ERROR]\\n'; exit 1\n",
        encoding="ascii",
    )
    maven.chmod(0o755)
    with pytest.raises(JarError, match="no route to registry"):
        kafka_jars.copy_by_maven(tmp_path / "jars", maven=str(maven))


@pytest.mark.parametrize(("main", "found"), [(11, False), (17, True), (21, True)])
def test_an_old_java_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: int, found: bool) -> None:
    """Kafka needs Java 17, so an older one is as good as none."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{main}.0.1\"' >&2\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere:/bin")
    assert (kafka_jars.find_java() == str(program)) is found
