"""The README is short and true: its test command is what CI runs, and its closing screen is the demo's."""

from tests.support.markdown import ROOT, fences

README = ROOT / "README.md"
MOST_LINES = 130


def text_block(name: str) -> str:
    """Return the README's text block of that name."""
    (found,) = [one.text for one in fences(README, "text") if one.name == name]
    return found


def test_it_is_read_in_a_minute() -> None:
    """The README keeps to its length; what does not fit belongs into docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    """`.ci/run` calls the command that the README gives for the tests, and nothing else."""
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert "make test" in [
        line.split("#")[0].strip() for fence in fences(README, "bash") for line in fence.text.splitlines()
    ]


def test_two_commands_stand_before_everything_else() -> None:
    """The first block of commands in the README is `make demo` and `make test`."""
    first = fences(README, "bash")[0]
    commands = [line.split("#")[0].strip() for line in first.text.splitlines()]
    assert [line for line in commands if line.startswith("make")] == ["make demo", "make test"]


def test_flow_is_drawn_in_plain_text() -> None:
    """The picture of the flow can be read without a renderer and names every process of ours."""
    picture = text_block("flow")
    for process in ("collector", "join", "pairs", "trainer", "indexer", "search", "Qdrant"):
        assert process in picture
