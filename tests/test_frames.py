"""The frames for notebooks: docs/RECORDS.md names every column, and files hold the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records_example import write_run

from analysis import load
from analysis.load import COLUMNS
from analysis.results import FILES, Results

DOCUMENT = (Path(__file__).parent.parent / "docs" / "RECORDS.md").read_text("utf-8")
NAMED = set(re.findall(r"[A-Za-z]\w*", " ".join(re.findall(r"`([^`]*)`", DOCUMENT))))
SMALL = {"ratios": (10, 100), "trials": 4, "repeats": 2, "features": 8}
SMALL |= {"species": ("a", "b", "c", "d"), "per_species": (20, 6, 12), "noise": (0.1,)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("frames") / "run"
    results = Results(load(write_run(folder, **SMALL)))  # type: ignore[arg-type]
    results.write()
    return results


def _documented(column: str) -> bool:
    plain = re.sub(r"_(low|high)$", "", column)
    plain = re.sub(r"^(val_f1_B[12])@\d+$", r"\1", plain)
    plain = re.sub(r"^(paper|ours|batched)_\w+$", r"\1_X", plain)
    return plain in NAMED or column in NAMED


@pytest.mark.parametrize("name", ["table", "encoders", "hypotheses", "probe_fits", *FILES.values()])
def test_every_column_is_documented(results: Results, name: str) -> None:
    frame = getattr(results, name)
    assert len(frame) > 0
    assert [column for column in frame if not _documented(column)] == []


def test_every_column_of_the_records_is_documented() -> None:
    for name, columns in COLUMNS.items():
        assert [column for column in columns if not _documented(column)] == [], name


@pytest.mark.parametrize("file", FILES)
def test_files_hold_the_frames(results: Results, file: str) -> None:
    frame = getattr(results, FILES[file])
    found = pd.read_csv(results.run.location.local / file)
    assert list(found) == list(frame)
    assert len(found) == len(frame)
    for column in frame.select_dtypes("number"):
        values = frame[column].to_numpy(dtype=float, na_value=np.nan)
        assert found[column].to_numpy(dtype=float) == pytest.approx(values, nan_ok=True)


def test_examples_are_images_of_the_species(results: Results) -> None:
    files = results.run.feature_files.set_index("file")["species"]
    for row in results.together.to_dict("records"):
        assert {files[file] for file in row["files"]} == {row["species"]}
        assert {files[file] for file in row["other_files"]} == {row["other"]}
