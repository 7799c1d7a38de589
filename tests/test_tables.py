"""Table I and the encoders' table: what a reader finds in the files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from records_example import write_run

from analysis import load, tables
from analysis.load import Run
from data.storage import InputError

COLUMNS = "variant label_ratio labels n repeats lr valid_labels trials search_epochs "
COLUMNS += "search_seconds final_epochs final_seconds " + " ".join(
    f"test_{name}{end}"
    for name in ("loss", "acc", "f1", "precision", "recall")
    for end in ("", "_low", "_high")
)


def _table(folder: Path, **changes: object) -> pd.DataFrame:
    few = {"per_species": (20, 6, 5), "repeats": 2, "encoders": 0}
    return tables.table_i(load(write_run(folder, **few | changes)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tables") / "run"
    return load(write_run(folder, per_species=(20, 6, 10), trials=4, encoders=0))


@pytest.fixture(scope="module")
def table(run: Run) -> pd.DataFrame:
    return tables.table_i(run)


def test_a_row_a_cell_with_exactly_the_columns(table: pd.DataFrame) -> None:
    assert list(table) == [*COLUMNS.split(), "reason", "recipe", "settings"]
    assert list(zip(table["label_ratio"], table["variant"], strict=True)) == [
        (ratio, variant) for ratio in (10, 25, 50, 75, 100) for variant in ("A", "B0", "B1", "B2")
    ]
    assert table["reason"].isna().all()
    assert set(table["n"]) == {200}
    assert set(table["repeats"]) == {5}
    assert list(table["labels"].unique()) == [40, 100, 200, 300, 400]


def test_values_are_the_means_of_the_evaluations_inside_their_intervals(
    run: Run, table: pd.DataFrame
) -> None:
    means = run.evaluations.groupby(["label_ratio", "variant"]).mean(numeric_only=True)
    for row in table.to_dict("records"):
        expected = means.loc[(row["label_ratio"], row["variant"])]
        assert row["lr"] == pytest.approx(expected["lr"])
        for name in ("test_loss", "test_acc", "test_f1", "test_precision", "test_recall"):
            assert row[name] == pytest.approx(expected[name], abs=1e-6)
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_a_row_says_what_was_spent_and_how_many_labels_chose(run: Run, table: pd.DataFrame) -> None:
    assert set(table["valid_labels"]) == {120}
    assert set(table["trials"]) == {4}
    for row in table.to_dict("records"):
        cell = f"{row['variant']}@{row['label_ratio']}"
        trials = run.trials[run.trials["cell"] == cell]
        final = run.evaluations[run.evaluations["cell"] == cell]
        assert row["search_epochs"] == trials["epochs"].sum()
        assert row["search_seconds"] == pytest.approx(trials["seconds"].sum())
        assert row["final_epochs"] == final["epochs"].sum()
        assert row["final_seconds"] == pytest.approx(final["seconds"].sum())


def test_a_cell_without_result_says_why(tmp_path: Path) -> None:
    table = _table(
        tmp_path / "run",
        ratios=(10, 100),
        trials=6,
        failed=("B1@10",),
        unevaluated=("B2@100", "A@10"),
        state="RUNNING",
    )
    reasons = table.set_index(["variant", "label_ratio"])["reason"].dropna().to_dict()
    assert reasons == {
        ("A", 10): "not evaluated yet",
        ("B1", 10): "all 6 trials failed: RuntimeError: loss is NaN at epoch 1",
        ("B2", 100): "not evaluated yet",
    }
    empty = table[table["reason"].notna()]
    assert empty[["test_acc", "test_loss_low"]].isna().all(axis=None)
    assert list(empty["repeats"]) == [0, 0, 0]


def test_a_search_alone_has_no_table(tmp_path: Path) -> None:
    assert _table(tmp_path / "run", repeats=0, ratios=(10,)).empty


def test_a_study_that_has_only_begun_has_rows_that_say_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), encoders=0, state="RUNNING")
    for file in folder.glob("*.parquet"):
        file.unlink()
    table = tables.table_i(load(folder))
    assert set(table["reason"]) == {"search not finished: 0 of 16 trials"}


def test_markdown_and_latex_show_validation_labels_and_escape(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", ratios=(10,), trials=3, failed=("A@10",), encoders=0))
    table = tables.table_i(run)
    table.loc[0, "reason"] = r"50 % of a_b & $c | <d> {e} \f"
    text = tables.caption(run)
    assert "plus 200 validation labels used for choosing" in text
    assert "conditional on the chosen lr" in text
    markdown, latex = tables.to_markdown(table, text), tables.to_latex(table, text)
    assert text in markdown
    assert r"a\_b & $c \| \<d>" in markdown
    assert r"50 \% of a\_b \& \$c | \textless{}d\textgreater{} \{e\} \textbackslash{}f" in latex
    assert r"\toprule" in latex
    widths = {line.count(" | ") for line in markdown.splitlines() if line.startswith("| ")}
    assert len(widths) == 1


def test_a_shared_encoder_is_a_condition(tmp_path: Path) -> None:
    shared = load(write_run(tmp_path / "a", ratios=(10,), per_repeat=False, encoders=0))
    own = load(write_run(tmp_path / "b", ratios=(10,), encoders=0))
    assert "and on the shared encoders" in tables.caption(shared)
    assert "shared encoder" not in tables.caption(own)


def test_csv_reads_back_as_it_was(tmp_path: Path) -> None:
    table = _table(tmp_path / "run", ratios=(10,), trials=3, failed=("A@10",))
    (tmp_path / "t.csv").write_text(tables.to_csv(table))
    back = pd.read_csv(tmp_path / "t.csv")
    assert list(back) == list(table)
    assert back["test_acc"].to_numpy() == pytest.approx(table["test_acc"].to_numpy(), nan_ok=True)
    assert back.loc[0, "reason"] == table.loc[0, "reason"]


@pytest.mark.parametrize("content", [b"", b"PAR1 torn", b"\x00" * 100])
def test_a_torn_record_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path / "run", ratios=(10,), encoders=0)
    (folder / "predictions.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"predictions\.parquet: cannot be read") as raised:
        tables.table_i(load(folder))
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no study\.yaml"):
        load(tmp_path)
    for text in ("a: [", "just text", yaml.safe_dump({"config": {}}), ""):
        (tmp_path / "study.yaml").write_text(text)
        with pytest.raises(InputError, match=r"study\.yaml: "):
            load(tmp_path)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import analysis, sys; print({'pandas', 'sklearn', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_load_is_a_function_whatever_was_imported_before() -> None:
    code = "import analysis.tables; from analysis import load; print(callable(load))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
