"""The compose file is valid, safe by default, and runs the very commands that `millrace up` runs."""

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.local.processes import PROCESSES
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {"kafka", "redis", "qdrant"}
OURS = {spec.name: spec for spec in PROCESSES if spec.name not in SERVERS}


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
    assert tuple(SERVICES[name]["command"]) == OURS[name].command()


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
            assert port.rpartition(":")[2] == str(spec.default_port)


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
