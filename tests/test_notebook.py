"""The example notebook runs on a run as it is, and is committed without what it printed."""

from __future__ import annotations

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient
from records_example import write_run

NOTEBOOK = REPOSITORY / "examples" / "explore.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each code cell showed, by media type, run where a reader would run it."""
    home = tmp_path_factory.mktemp("home")
    write_run(home / "runs" / "quick", per_species=(8, 4, 4), trials=4, repeats=2, features=16)
    (home / "examples").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": home / "examples"}}
    )
    client.execute()
    return [_shown(cell) for cell in notebook.cells if cell.cell_type == "code"]


def _shown(cell: nbformat.NotebookNode) -> dict[str, str]:
    shown: dict[str, str] = {}
    for output in cell.outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.get("text")
        shown |= output.get("data", {"text/plain": output.get("text", "")})
    return shown


def test_each_cell_shows_something(outputs: list[dict[str, str]]) -> None:
    assert all(outputs)
    assert "quick COMPLETE 80 trials in 20 cells" in outputs[0]["text/plain"]
    assert sum("text/html" in shown for shown in outputs) == 5  # frames
    assert sum("image/png" in shown for shown in outputs) == 1
    assert sum("image/svg+xml" in shown for shown in outputs) == 1


def test_it_shows_the_encoders_and_the_effect_of_pretraining(outputs: list[dict[str, str]]) -> None:
    shown = "\n".join(each.get("text/html", "") for each in outputs)
    assert "B2−B0" in shown
    assert "unet-0000" in shown
    assert "random" in shown


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
