"""Every number of the page is traced to the records.

Values are computed again from trials.parquet, evaluations.parquet, predictions.parquet and the
features, with pandas and scikit-learn alone. Interval ends, p-values and what would decide a
difference are those of the frames in docs/RECORDS.md, whose own tests go on from there. A number
that carries no key must be one of the few that are the same in every report, or the study's.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from records_example import write_run
from sklearn import metrics as sk

from analysis import load
from analysis.report import write_report
from analysis.results import Results
from analysis.wording import rounded_up

SPECIES = ("Atala", "Brown argus", "Great jay", "Map")
RATIOS = (10, 100)
METRICS = ("acc", "f1", "precision", "recall", "loss")
CONSTANT = {"95", "3", "80", "10", "0.05", "2", "2,000", "64", "60", "5", "50", "30", "0", "1", "4"}
ALONE = {"meta", "link", "br"}  # elements without an end tag
SILENT = {"script", "style", "svg", "pre", "title"}
pytestmark = pytest.mark.usefixtures("no_png")
Frame = pd.DataFrame


def shown_points(share: float) -> str:
    """A difference as the page has it: in points, signed, but for what is shown as 0."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text


class Numbers(HTMLParser):
    """The text of each ``data-key``, and the other text of a page outside figures."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.keyed: dict[str, str] = {}
        self.other = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALONE:
            self.open.append((tag, dict(attrs).get("data-key")))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if SILENT & {tag for tag, _ in self.open}:
            return
        keys = [key for _, key in self.open if key]
        if keys:
            self.keyed[keys[-1]] = self.keyed.get(keys[-1], "") + plain(data)
        else:
            self.other += f"{plain(data)} "


def plain(text: str) -> str:
    """With ordinary minus signs and spaces."""
    return text.replace("−", "-").replace("\xa0", " ")


class Records:
    """What lies on disk, read without the project's own loader."""

    def __init__(self, folder: Path):
        names = ("trials", "evaluations", "predictions", "labels", "encoders_made", "epochs")
        self.frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}
        self.files = pd.read_parquet(folder / "features" / "files.parquet")
        self.latents = pd.read_parquet(folder / "latents.parquet")
        self.study = yaml.safe_load((folder / "study.yaml").read_text())

    def __getattr__(self, name: str) -> Frame:
        return self.frames[name]

    def scores(self, cell: str) -> dict[str, np.ndarray]:
        """Each test metric of each repeat, by scikit-learn."""
        found = []
        for _, rows in self.predictions[self.predictions["cell"] == cell].groupby("repeat"):
            true, pred = rows["true"], rows["pred"]
            macro: dict[str, Any] = {"labels": SPECIES, "average": "macro", "zero_division": 0}
            parts = sk.precision_recall_fscore_support(true, pred, **macro)[:3]
            whole = {"acc": sk.accuracy_score(true, pred), "loss": rows["loss"].mean()}
            found.append(whole | dict(zip(("precision", "recall", "f1"), parts, strict=True)))
        return {name: np.array([each[name] for each in found]) for name in METRICS}

    def winner(self, cell: str) -> pd.Series:
        rows = self.trials.query("cell == @cell and state == 'COMPLETE'")
        return rows.sort_values(["val_f1", "val_loss"], ascending=[False, True]).iloc[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "numbers"
    sizes: dict[str, Any] = {"per_species": (20, 6, 12), "features": 10, "trials": 7}
    write_run(folder, species=SPECIES, ratios=RATIOS, unevaluated=("A@10",), **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.sections.table_i.SPECIES", len(SPECIES))  # the paper has 20
        write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Numbers:
    return Numbers((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def records(folder: Path) -> Records:
    return Records(folder)


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return Results(load(folder))


def expect(page: Numbers, prefix: str, expected: dict[str, str]) -> None:
    """These are all keys of the page that begin so, with their texts."""
    found = {key: text for key, text in page.keyed.items() if key.startswith(f"{prefix} ")}
    assert found == {f"{prefix} {key}": text for key, text in expected.items()}


def ends(row: Any, name: str, form: str, scale: float = 1.0) -> str:
    low, high = (scale * row[f"{name}_{end}"] for end in ("low", "high"))
    return f"{low:{form}} to {high:{form}}"


CELLS = [f"{variant}@{ratio}" for ratio in RATIOS for variant in ("A", "B0", "B1", "B2")]
TESTED = [cell for cell in CELLS if cell != "A@10"]


def labelled(records: Records, cell: str) -> int:
    ratio = int(cell.split("@")[1])
    labels = records.labels
    return int((labels["repeat"].isna() & (labels["label_ratio"] == ratio)).sum())


def test_table_i(page: Numbers, records: Records, results: Results) -> None:
    expected = {"A@10 reason": "not evaluated"}
    table = results.table.assign(cell=CELLS).set_index("cell")
    for cell in CELLS:
        trials = records.trials[records.trials["cell"] == cell]
        tests = records.evaluations[records.evaluations["cell"] == cell]
        expected[f"{cell} label_ratio"] = f"{cell.split('@')[1]} %"
        expected[f"{cell} label_ratio small"] = str(labelled(records, cell))
        expected[f"{cell} lr"] = f"{records.winner(cell)['lr']:.1e}"
        expected[f"{cell} repeats"] = str(len(tests))
        for name, form in (("epochs", ",.0f"), ("seconds", ",.0f")):
            expected[f"{cell} search_{name}"] = format(trials[name].sum(), form)
            expected[f"{cell} search_{name} small"] = f"+ {format(tests[name].sum(), form)}"
        if cell not in TESTED:
            continue
        expected[f"{cell} n"] = str(12 * len(SPECIES))
        for name, values in records.scores(cell).items():
            assert values == pytest.approx(tests[f"test_{name}"].to_numpy())
            expected[f"{cell} test_{name}"] = f"{values.mean():.3f}"
            expected[f"{cell} test_{name} small"] = ends(table.loc[cell], f"test_{name}", ".3f")
    expect(page, "table_i", expected)


def test_intervals_are_about_as_wide_as_a_plain_bootstrap(
    records: Records, results: Results
) -> None:
    random = np.random.default_rng(1)
    for row in results.table.dropna(subset=["test_acc"]).to_dict("records"):
        rows = records.predictions.query("variant == @row['variant']")
        rows = rows[rows["label_ratio"] == row["label_ratio"]]
        right = (rows["true"] == rows["pred"]).to_numpy().reshape(row["repeats"], -1)
        drawn = [resampled(right, random) for _ in range(400)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert row["test_acc_low"] < row["test_acc"] < row["test_acc_high"]
        assert 0.5 < (row["test_acc_high"] - row["test_acc_low"]) / (high - low) < 2.5


def resampled(right: np.ndarray, random: np.random.Generator) -> float:
    repeats, images = (random.integers(size, size=size) for size in right.shape)
    return float(right[np.ix_(repeats, images)].mean())


def test_differences(page: Numbers, records: Records, results: Results) -> None:
    rows = results.contrasts.to_dict("records")
    expected = {}
    for row in rows:
        key = f"{row['contrast']}@{row['label_ratio']}".replace("−", "-")
        if not row["contrast"].startswith("probe"):
            one, other = (
                records.scores(f"{variant}@{row['label_ratio']}")["acc"]
                for variant in row["contrast"].split("−")
            )
            assert row["difference"] == pytest.approx((one - other).mean())
        expected[f"{key} label_ratio"] = f"{row['label_ratio']} %"
        expected[f"{key} difference"] = shown_points(row["difference"])
        expected[f"{key} difference small"] = (
            f"{shown_points(row['low'])} to {shown_points(row['high'])}"
        )
        for name in ("p", "p_holm"):
            if row["repeats"] == 1:  # copies of a probe with all labels: a dash
                assert np.isnan(row[name])
                continue
            expected[f"{key} {name}"] = "< 0.001" if row[name] < 0.001 else f"{row[name]:.3f}"
    found = {k.replace("−", "-"): v for k, v in page.keyed.items() if k.startswith("differences ")}
    assert found == {f"differences {key}": text for key, text in expected.items()}
    known = [row for row in rows if row["repeats"] > 1]
    assert [row["p_holm"] for row in known] == pytest.approx(holm([row["p"] for row in known]))


def holm(p_values: list[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        found[i] = highest
    return found


def test_the_trials_in_table_and_chart(page: Numbers, records: Records, folder: Path) -> None:
    trials = records.trials
    order = ["failed", "score", "val_loss", "trial_id"]
    keys = trials.assign(failed=trials["state"] == "FAIL", score=-trials["val_f1"])
    ranked = keys.sort_values(order, na_position="last", ignore_index=True)
    expected = {}
    for rank, row in enumerate(ranked.to_dict("records"), 1):
        if row["state"] == "FAIL" or (ranked["cell"][: rank - 1] == row["cell"]).sum() >= 3:
            continue
        key = row["trial_id"]
        expected |= {f"{key} rank": str(rank), f"{key} lr": f"{row['lr']:.1e}"}
        for name in ("val_f1", "val_acc", "val_loss"):
            expected[f"{key} {name}"] = f"{row[name]:.4f}"
        expected[f"{key} epochs"] = f"{row['epochs']} ({row['best_epoch']})"
        expected[f"{key} seconds"] = f"{row['seconds']:.1f}"
    expect(page, "trials", expected)
    columns = chart(folder, "trials")["columns"]
    for name in ("trial_id", "cell", "state"):
        assert columns[name] == ranked[name].tolist()
    for name in ("lr", "val_f1", "val_acc", "val_loss", "epochs", "best_epoch", "seconds"):
        values = np.array(columns[name], dtype=float)
        known = ranked[name].to_numpy(float, na_value=np.nan)
        assert values == pytest.approx(known, abs=0.00005001, nan_ok=True)
    chosen = set(np.array(columns["trial_id"])[columns["chosen"]])
    assert chosen == {records.winner(cell)["trial_id"] for cell in CELLS}


def chart(folder: Path, name: str) -> Any:
    found = re.search(rf'id="data-{name}">(.*?)</script>', (folder / "report.html").read_text())
    assert found is not None
    return yaml.safe_load(found.group(1))  # JSON is YAML


def test_the_chart_of_label_efficiency(folder: Path, results: Results) -> None:
    table = results.table.set_index(["variant", "label_ratio"])
    lines = chart(folder, "efficiency")["lines"]
    assert sum(len(line["labels"]) for line in lines) == len(TESTED)
    for line in lines:
        for i, ratio in enumerate(line["ratio"]):
            row = table.loc[(line["variant"], ratio)]
            for name in METRICS:
                names = [f"test_{name}{end}" for end in ("", "_low", "_high")]
                assert line[name][i] == pytest.approx(row[names].tolist())


def test_the_latent_map_is_that_of_the_records(folder: Path, records: Records) -> None:
    data = chart(folder, "latents")
    points = records.latents.set_index(["encoder", "file"])
    for each in data["maps"]:
        for i, file in enumerate(data["files"]):
            row = points.loc[(each["encoder"], file)]
            assert (each["x"][i], each["y"][i]) == pytest.approx((row["x"], row["y"]), abs=0.006)
            assert each["cluster"][i] == row["cluster"]
            assert data["species"][data["of"][i]] == row["species"]
            assert data["splits"][i] == row["split"]


def test_clusters(page: Numbers, records: Records, results: Results) -> None:
    expected = {}
    for row in results.latents.clusters.to_dict("records"):
        key = f"{row['encoder']} {row['space']}"
        points = records.latents[records.latents["encoder"] == row["encoder"]]
        found = points["cluster" if row["space"] == "latent" else "cluster_tsne"]
        nmi = sk.normalized_mutual_info_score(points["species"], found)
        ari = sk.adjusted_rand_score(points["species"], found)
        assert (row["nmi"], row["ari"]) == pytest.approx((nmi, ari))
        if row["space"] == "tsne":
            silhouette = sk.silhouette_score(points[["x", "y"]], found)
            assert row["silhouette"] == pytest.approx(silhouette, abs=1e-4)
        expected[f"{key} k"] = str(len(SPECIES))
        ami = sk.adjusted_mutual_info_score(points["species"], found)
        assert row["ami"] == pytest.approx(ami)
        for name in ("nmi", "ami", "ari", "purity", "silhouette"):
            expected[f"{key} {name}"] = f"{row[name]:.3f}"
            expected[f"{key} {name} small"] = ends(row, name, ".3f")
    expect(page, "clusters", expected)


def label_ends(low: float, high: float, least: int, most: int) -> str:
    """What is beyond the fewest and the most labels of a curve is said, not counted."""
    first = f"{least:,} or fewer".replace("-", "−") if low == -np.inf else count(low, most)
    if low == high or high <= least:
        return first
    if np.isinf([low, high]).all():
        return "any number"
    return f"{first} or more" if high == np.inf else f"{first} to {count(high, most)}"


def test_labels_saved(page: Numbers, records: Records, results: Results) -> None:
    expected = {}
    labels = [labelled(records, f"B0@{ratio}") for ratio in RATIOS]
    curve = [records.scores(f"B0@{ratio}")["acc"].mean() for ratio in RATIOS]
    for row in results.labels_saved.to_dict("records"):
        key = f"{row['variant']}@{row['label_ratio']}"
        accuracy = records.scores(key)["acc"].mean()
        if row["bound"] == "exact" and curve == sorted(curve):
            needed = np.exp(np.interp(accuracy, curve, np.log(labels)))
            assert row["needed"] == pytest.approx(needed)
        expected[f"{key} label_ratio"] = f"{row['label_ratio']} %"
        expected[f"{key} label_ratio small"] = str(labelled(records, key))
        expected[f"{key} acc"] = f"{accuracy:.3f}"
        for name in ("needed", "saved"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            less = labelled(records, key) if name == "saved" else 0
            bounds = (labels[0] - less, labels[-1] - less)
            expected[f"{key} {name}"] = count(row[name], bounds[1])
            expected[f"{key} {name} small"] = label_ends(low, high, *bounds)
    assert "more than 0" in expected.values(), "of B2 with all labels, which B0 never reaches"
    expect(page, "labels_saved", expected)


def test_labels_needed(page: Numbers, records: Records, results: Results) -> None:
    expected = {}
    needed = results.labels_needed
    for row in needed.to_dict("records"):
        key = f"{row['variant']}@{row['acc']:g}"
        if row["variant"] == needed["variant"].iloc[0]:
            expected[f"{key} acc"] = f"{100 * row['acc']:.0f} %"
        if row["bound"] == "at most":
            expected[f"{key} needed"] = f"{row['needed']:,.0f} or fewer"
            continue
        low, high = row["needed_low"], row["needed_high"]
        expected[f"{key} needed"] = count(row["needed"], row["most"])
        bounds = (labelled(records, "B0@10"), row["most"])
        expected[f"{key} needed small"] = label_ends(low, high, *bounds)
    assert expected
    expect(page, "labels_needed", expected)


def test_what_more_labels_bring(page: Numbers, records: Records, results: Results) -> None:
    expected = {}
    for row in results.labels_gained.to_dict("records"):
        few, many = (f"{row['variant']}@{row[name]}" for name in ("label_ratio", "to_ratio"))
        gain = records.scores(many)["acc"] - records.scores(few)["acc"]
        expected[f"{row['variant']} labels"] = str(labelled(records, few))
        expected[f"{row['variant']} to_labels"] = str(labelled(records, many))
        expected[f"{row['variant']} difference"] = shown_points(gain.mean())
        interval = [shown_points(row[end]) for end in ("low", "high")]
        expected[f"{row['variant']} difference small"] = " to ".join(interval)
        for name in ("p", "p_holm"):
            small = row[name] < 0.001
            expected[f"{row['variant']} {name}"] = "< 0.001" if small else f"{row[name]:.3f}"
    assert expected
    expect(page, "labels_gained", expected)


def count(labels: float, most: int) -> str:
    """Of what the baseline never reaches only this is known: it takes more than it had."""
    return f"more than {most}" if labels == np.inf else f"{labels:,.0f}"


def test_beside_the_paper(page: Numbers, records: Records, results: Results) -> None:
    published = pd.read_csv(Path("analysis/paper_table_i.csv"), comment="#")
    published = published.set_index(["variant", "label_ratio"])
    for key, text in page.keyed.items():
        if not key.startswith("paper ") or key.endswith(("label_ratio", "small")):
            continue
        cell, column = key.split()[1:]
        kind, name = column.split("_")
        variant, ratio = cell.split("@")
        if kind == "paper":
            assert text == f"{published.loc[(variant, int(ratio)), f'test_{name}']:.3f}"
        elif kind == "ours":
            assert text == f"{records.scores(cell)[name].mean():.3f}"
        else:
            assert text == f"{batched(records, cell, name):.3f}"
    assert "paper B1@100 batched_f1" in page.keyed
    shown = {key.split()[1] for key in page.keyed if key.startswith("paper ")}
    assert shown == {"A@100", "B1@10", "B1@100", "B2@10", "B2@100"}, "what the study has as well"


def batched(records: Records, cell: str, name: str) -> float:
    """As the paper: within batches of 64 in class order, then the mean."""
    values = []
    for _, rows in records.predictions[records.predictions["cell"] == cell].groupby("repeat"):
        rows = rows.sort_values(["true", "file"])
        if name == "acc":
            values.append(sk.accuracy_score(rows["true"], rows["pred"]))
            continue
        cuts = [*range(0, len(rows), 64), len(rows)]
        parts = [rows.iloc[low:high] for low, high in pairwise(cuts)]
        score = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
        macro: dict[str, Any] = {"average": "macro", "zero_division": 0}
        values.append(np.mean([score[name](p["true"], p["pred"], **macro) for p in parts]))
    return float(np.mean(values))


def test_encoders(page: Numbers, records: Records, results: Results) -> None:
    made = records.encoders_made.set_index("encoder").loc["unet-0000"]
    assert page.keyed["encoders unet-0000 loss"] == f"{made['loss']:.4f}"
    assert page.keyed["encoders unet-0000 images"] == str(20 * len(SPECIES))
    assert page.keyed["encoders unet-0000 seconds"] == f"{made['seconds']:.0f}"
    for row in results.encoders.to_dict("records"):
        for name in (
            "val_f1",
            "probe_acc",
            "knn_acc",
            *(k for k in row if k.startswith("val_f1_")),
        ):
            shown = page.keyed.get(f"encoders {row['encoder']} {name}")
            assert shown == (None if pd.isna(row[name]) else f"{row[name]:.3f}")
    assert page.keyed["encoder_statement"] == plain(results.encoder_statement)


def test_probes_and_what_would_decide(page: Numbers, results: Results) -> None:
    for row in results.probes.to_dict("records"):
        key = f"probes {row['features']}@{row['label_ratio']}"
        fits = results.probe_fits.query("features == @row['features']")
        fits = fits[fits["label_ratio"] == row["label_ratio"]]
        assert page.keyed[f"{key} test_acc"] == f"{fits['test_acc'].mean():.3f}"
        assert page.keyed[f"{key} val_acc"] == f"{fits['val_acc'].mean():.3f}"
        assert page.keyed[f"{key} test_acc small"] == ends(row, "test_acc", ".3f")
        assert page.keyed[f"{key} repeats"] == str(row["repeats"])
    for row in results.power.query("verdict == 'not decided'").to_dict("records"):
        key = f"power {row['contrast']}@{row['label_ratio']}"
        assert page.keyed[f"{key} target"] == f"{100 * row['target']:.1f}"
        for name in ("repeats", "repeats_needed", "n", "images_needed"):
            shown = page.keyed.get(f"{key} {name}")
            assert shown == (None if pd.isna(row[name]) else f"{row[name]:,}")


def test_errors(page: Numbers, records: Records) -> None:
    evaluations = records.evaluations[records.evaluations["label_ratio"] == 100]
    best = evaluations.groupby("variant")["val_f1"].mean().idxmax()
    rows = records.predictions[records.predictions["cell"] == f"{best}@100"]
    table = pd.crosstab(rows["true"], rows["pred"])
    found = [key for key in page.keyed if key.startswith("confused ") and key.endswith("times")]
    times = []
    for key in found:
        true, pred = key.removeprefix("confused ").removesuffix(" times").split("|")
        of, count = int(table.loc[true].sum()), int(table.loc[true, pred])
        assert page.keyed[key] == str(count)
        assert page.keyed[f"confused {true}|{pred} of"] == str(of)
        assert page.keyed[f"confused {true}|{pred} share"] == f"{100 * count / of:.0f} %"
        times.append(count)
    wrong = sorted(int(table.loc[t, p]) for t in table.index for p in table if t != p)[::-1]
    assert times == wrong[: len(times)]
    bins = np.clip(np.ceil(rows["probability"] * 15), 1, 15)
    right = (rows["true"] == rows["pred"]).astype(float)
    gaps = [abs((right[bins == b] - rows["probability"][bins == b]).sum()) for b in np.unique(bins)]
    assert page.keyed["calibration ece"] == f"{sum(gaps) / len(rows):.3f}"


def test_cost_failures_and_savings(page: Numbers, records: Records) -> None:
    expected = {}
    for cell in CELLS:
        trials = records.trials[records.trials["cell"] == cell]
        expected[f"{cell} trials"] = str(len(trials))
        for state in ("COMPLETE", "PRUNED", "FAIL"):
            expected[f"{cell} {state}"] = str((trials["state"] == state).sum())
        for name in ("trials", "evaluations"):
            frame = records.frames[name]
            rows = frame[frame["cell"] == cell]
            expected[f"{cell} {name} epochs"] = f"{rows['epochs'].sum():,.0f}"
            expected[f"{cell} {name} seconds"] = f"{rows['seconds'].sum():,.1f}"
    expect(page, "cost", expected)
    reason = "RuntimeError: loss is NaN at epoch 1"
    expect(page, "failures", {f"A@10 {reason}": "1", f"A@100 {reason}": "1"})
    ended = records.trials[records.trials["state"] != "FAIL"]
    stopped = ended[ended["state"] == "PRUNED"]
    trained, saved = int(ended["epochs"].sum()), int((20 - stopped["epochs"]).sum())
    texts = {"stopped": f"{len(stopped)}", "trials": f"{len(ended)}", "trained": f"{trained:,}"}
    texts |= {"whole": f"{trained + saved:,}", "share": f"{100 * saved / (trained + saved):.0f} %"}
    expect(page, "savings", texts)


def test_the_answer_and_the_questions(page: Numbers, records: Records, results: Results) -> None:
    """Each number of the sentences is a difference, an accuracy or a count that was checked."""
    known = {"95", *map(str, RATIOS)}
    for row in results.contrasts.to_dict("records"):
        known |= {f"{abs(100 * row[name]):.1f}" for name in ("difference", "low", "high")}
        known |= {f"{row[name]:.3f}" for name in ("p", "p_holm")}
    for row in results.table.dropna(subset=["test_acc"]).to_dict("records"):
        known |= {f"{100 * row[f'test_acc{end}']:.1f}" for end in ("", "_low", "_high")}
        known.add(str(row["labels"]))
    for row in results.power.to_dict("records"):
        known |= {f"{100 * row['target']:.1f}", str(row["repeats"]), str(row["n"])}
        counts = [row[name] for name in ("repeats_needed", "images_needed")]
        known |= {rounded_up(int(count)) for count in counts if not pd.isna(count)}
        known |= {each.removeprefix("about ") for each in known} | {"100", "100,000"}
    for row in results.labels_needed.to_dict("records"):
        known |= {
            f"{row[name]:,.0f}" for name in ("needed", "needed_low", "needed_high", "most", "least")
        }
        known.add(f"{100 * row['acc']:.0f}")
    for row in results.labels_gained.to_dict("records"):
        known |= {f"{abs(100 * row[name]):.1f}" for name in ("difference", "low", "high")}
    answers = [text for key, text in page.keyed.items() if key.startswith("answer ")]
    assert len(answers) == 4
    for text in answers:
        assert numbers(text) <= known, text
    for row in results.hypotheses.to_dict("records"):
        assert page.keyed[f"hypotheses {row['name']}"] == plain(row["text"])
        if row["name"] != "B2−B0: few":
            assert numbers(row["text"]) <= known | {"2"}, row["text"]
    change = results.hypotheses.set_index("name").loc["B2−B0: few", "text"]
    effects = [
        (records.scores(f"B2@{ratio}")["acc"] - records.scores(f"B0@{ratio}")["acc"]).mean()
        for ratio in RATIOS
    ]
    assert f"is {100 * (effects[0] - effects[1]):+z.1f} points" in plain(change)


def numbers(text: str) -> set[str]:
    """The numbers of a text, names such as B2 and A@10 left out."""
    text = re.sub(r"\b[AB]\d?(@\d+)?\b|\bF1\b", "", plain(text))
    return set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text))


def test_what_heads_the_page(page: Numbers, records: Records) -> None:
    trials = len(records.trials)
    assert page.keyed["meta 1"] == f"{len(CELLS)} cells, {trials} trials"
    assert page.keyed["meta 2"] == "complete"
    assert page.keyed["meta 3"] == f"{len(SPECIES)} species"
    counts = records.study["data"]["counts"]
    assert page.keyed["meta 4"] == ", ".join(f"{n} {split}" for split, n in counts.items())
    assert page.keyed["meta 5"] == records.study["started"][:16].replace("T", " ")
    assert page.keyed["warning 1"] == f"2 of {trials} trials failed; the reasons are below."
    assert page.keyed["fact Wall time"] == "5 min 12 s"
    assert page.keyed["fact Seed"] == str(records.study["config"]["seed"])
    for key, text in page.keyed.items():
        if key.startswith("fact ") and key != "fact Wall time":
            assert numbers(text) <= numbers(str(records.study)) | {"10"}, key


def test_no_other_number_is_on_the_page(page: Numbers, records: Records) -> None:
    """What carries no key is the same in every report, or of the study: species, repeats, ..."""
    study = {str(len(SPECIES)), *(str(n) for n in records.study["data"]["counts"].values())}
    study.add(str(records.study["config"]["evaluation"]["repeats"]))
    text = page.other
    for name in [
        *records.trials["trial_id"],
        *CELLS,
        "unet-0000",
        "RuntimeError: loss is NaN at epoch 1",
    ]:
        text = text.replace(name, "")
    text = re.sub(r"\(Fig\. \d\)|Table I", "", text)
    assert numbers(text) <= CONSTANT | study
    assert len(page.keyed) > 500
