"""The compose file is valid, safe by default and runs the commands of `millrace up`; its images hold what they need."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from contracts.telemetry import DEFAULT_PORTS, Process
from deploy.local.processes import PROCESSES
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {"kafka", "redis", "qdrant"}
OURS = {spec.name: spec for spec in PROCESSES if spec.name not in SERVERS}
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL))


def test_it_meets_the_compose_specification() -> None:
    """The file validates against the Compose specification's own schema."""
    path = distribution("check-jsonschema").locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")
    schema = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    jsonschema.validate(COMPOSE, schema)


def test_it_runs_every_process() -> None:
    """Kafka, Redis, a Qdrant server and each of our processes stand in it, and nothing else."""
    assert set(SERVICES) == SERVERS | set(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_command_equals_the_one_of_up(name: str) -> None:
    """A container runs exactly what the supervisor runs."""
    assert tuple(SERVICES[name]["command"]) == ("python", "-m", OURS[name].module)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_pinned_checked_and_not_root(name: str) -> None:
    """Images carry a version, health is checked, and no process runs as root."""
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert any(character.isdigit() for character in tag)
    assert tag != "latest"
    assert service["healthcheck"]["test"]
    assert service["user"].split(":")[0] not in ("0", "root")


def test_ports_are_published_on_loopback_only() -> None:
    """Nothing is reachable from another machine by default."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_each_process_publishes_the_port_it_listens_on() -> None:
    """The published port of each of our services is its default port."""
    for name, spec in OURS.items():
        for port in SERVICES[name].get("ports", []):
            assert port.rpartition(":")[2] == str(DEFAULT_PORTS[Process(spec.name)])


@pytest.mark.parametrize("name", sorted(OURS))
def test_health_and_metrics_are_asked_where_the_process_answers(name: str) -> None:
    """The health check asks `/ready` on the port of the process, and the page scrapes that port."""
    port = DEFAULT_PORTS[Process(name)]
    assert f"'http://127.0.0.1:{port}/ready'" in SERVICES[name]["healthcheck"]["test"][-1]
    targets = SERVICES["page"]["environment"]["MILLRACE_SCRAPE"].split(",")
    assert f"{name}=http://{name}:{port}" in targets or name == "page"


def test_no_key_has_a_default() -> None:
    """Every key must come from the person who runs it: the file refuses to start without."""
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if name.endswith("_KEY"):
                assert value.startswith(f"${{{value[2:].split(':')[0]}:?")


def test_every_setting_exists() -> None:
    """No container is given a setting that the processes would refuse."""
    for name in OURS:
        for variable in SERVICES[name]["environment"]:
            assert variable.removeprefix("MILLRACE_").lower() in Settings.model_fields


def copied(stage: str) -> set[str]:
    """Return the names that a stage of the Dockerfile copies from the repository."""
    return set(re.findall(r"^COPY (\S+) ", STAGES[stage], flags=re.MULTILINE))


def test_everything_that_the_images_copy_is_there_and_sent_to_the_builder() -> None:
    """What .dockerignore keeps back, or what was renamed, would end the build."""
    ignored, *lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored == "*"
    sent = {line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")}
    for stage in STAGES:
        for source in copied(stage):
            assert (ROOT / source).exists()
            assert source.split("/")[0] in sent


def imported(module: str) -> Iterator[str]:
    """Give the names that a module of ours imports anywhere, and the packages around it."""
    path = source_of(module)
    assert path is not None
    yield from (module[: match.start()] for match in re.finditer(r"\.", module))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source_of(module: str) -> Path | None:
    """Return the file of a module of ours, None for anything else."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_image_holds_all_that_its_processes_import(name: str) -> None:
    """Our own packages are copied, and the lock of the image names every library."""
    image = SERVICES[name]["build"]["target"]
    locked = set(
        re.findall(r"^([\w.-]+)==", (ROOT / "locks" / f"{image}.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    distributions = packages_distributions()
    seen: set[str] = set()
    main = f"{OURS[name].module}.__main__"
    waiting = [main if source_of(main) else OURS[name].module]
    while waiting:
        module = waiting.pop()
        top = module.split(".")[0]
        if module in seen or top in sys.stdlib_module_names:
            continue
        seen.add(module)
        if source_of(module) is not None:
            assert top in copied(image)
            waiting.extend(imported(module))
        elif not (ROOT / top).is_dir():
            assert locked & {re.sub(r"[-_.]+", "-", found).lower() for found in distributions[top]}, module
    assert len(seen) > 10
