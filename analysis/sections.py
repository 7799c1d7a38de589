"""The sections of the report, in the order of the page. One without content is left out."""

from __future__ import annotations

from typing import Any

import pandas as pd
import yaml

from analysis import figures, tables
from analysis.answer import best_cell, minus, percents
from analysis.latents import CLUSTER_METRICS
from analysis.leaderboard import METRIC_NAMES, epochs, first_line, leaderboard, number
from analysis.load import CONTROLS, Run
from analysis.page import Cell, Grid, Picture, Row, Section, draw
from analysis.results import Results
from analysis.statistics import DRAWS

TABLE_METRICS = ("acc", "f1", "precision", "recall", "loss")
TOP = 5  # trials of each cell on the page; all of them are in trials.parquet


def headline(results: Results) -> Picture | None:
    table = results.table
    if table.empty or not (table["test_acc"].notna() & table["labels"].notna()).any():
        return None
    counted = f"Counted are labelled training images, {tables.validation_note(results.run)}."
    caption = (
        "Test accuracy against labelled training images. Bands: 95 % intervals by the crossed "
        "bootstrap over repeats and test images. Overlapping bands do not mean that there is no "
        f"difference: see Differences. {counted}"
    )
    figure = figures.label_efficiency(table)
    return draw(results.run, "label_efficiency", caption, figure, "auto")


def table_section(results: Results) -> Section:
    """Table I, and what its intervals are conditional on."""
    section = Section("table-i", "Table I")
    run = results.run
    if results.table.empty:
        section.text("There is none: the study only searches (evaluation.repeats is 0).")
        return section
    rows, before = [], None
    for row in results.table.to_dict("records"):
        group = before not in (None, row["label_ratio"])
        rows.append(Row(_table_cells(row), group))
        before = row["label_ratio"]
    names = ["<Variant", "Labels", *(tables.HEADINGS[metric] for metric in TABLE_METRICS)]
    section.table(Grid("Table I", [*names, "lr", "n", "Repeats"], rows, tables.caption(run)))
    section.note(_conditional(run))
    return section


def _table_cells(row: dict[Any, Any]) -> list[Cell]:
    images = number(row["labels"], ",.0f")
    cells = [Cell(str(row["variant"]), "t"), Cell(f"{row['label_ratio']:g} %", small=images)]
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    tested = not pd.isna(row["test_acc"])
    if tested:
        cells += [_with_interval(row, f"test_{metric}") for metric in TABLE_METRICS]
    else:
        cells.append(Cell(reason, "long", span=len(TABLE_METRICS)))
    cells += [Cell(number(row["lr"], ".1e")), Cell(number(row["n"], ",.0f"))]
    return [*cells, Cell(number(row["repeats"], ".0f"), small=reason if tested else "")]


def _with_interval(row: dict[Any, Any], name: str) -> Cell:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return Cell("–")
    return Cell(minus(f"{value:.3f}"), small=minus(f"{low:.3f} to {high:.3f}"))


def _conditional(run: Run) -> str:
    repeats = tables.configured_repeats(run)
    text = (
        f"The intervals come from {DRAWS:,} draws of repeats and of test images (stratified by "
        "species), the same draws for every cell. They are conditional on the chosen learning "
        "rate: another search could choose another one. "
    )
    if repeats == 1:
        text += "With one repeat they are over test images alone, and know nothing of the seed. "
    elif repeats < 4:
        text += f"With {repeats} repeats they are too narrow where seeds matter more than images. "
    if tables.pretrained(run) and not tables.per_repeat(run):
        text += (
            "All repeats share one pretrained encoder (encoder.per_repeat is false), so those of "
            "B1 and B2 are conditional on that encoder as well. "
        )
    return text + "The same table is in table_i.csv, table_i.md and table_i.tex."


def differences_section(results: Results) -> Section | None:
    """Contrasts between variants on the same images and seeds."""
    found = results.contrasts
    if found.empty:
        return None
    section = Section("differences", "Differences")
    section.text(
        "Differences in test accuracy, in points, between two variants on the same images, labels "
        "and seeds. B2−B0 is the effect of pretraining; B2−B1 that of fine-tuning; B2−A mixes "
        "pretraining with another architecture, and only describes."
    )
    rows, before = [], None
    for row in found.to_dict("records"):
        cells = [Cell(row["contrast"], "t"), Cell(row["effect"], "t")]
        cells.append(Cell(f"{row['label_ratio']:g} %"))
        points = [100 * row[k] for k in ("difference", "low", "high")]
        cells.append(Cell(minus(f"{points[0]:+.1f}")))
        cells.append(Cell(minus(f"{points[1]:+.1f}") + " to " + minus(f"{points[2]:+.1f}")))
        cells += [Cell(_p_value(row["p"])), Cell(_p_value(row["p_holm"]))]
        cells.append(Cell(_decided(row), "t"))
        rows.append(Row(cells, group=before not in (None, row["contrast"])))
        before = row["contrast"]
    names = ["<Contrast", "<Effect of", "Labelled", "Points", "95 % interval", "p", "p (Holm)"]
    caption = (
        "p: two-sided, from the centred crossed bootstrap. Holm: over all ratios and contrasts. "
        "A difference counts as decided where the latter is under 0.05."
    )
    section.table(Grid("Differences", [*names, "<Verdict"], rows, caption))
    return section


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _decided(row: dict[Any, Any]) -> str:
    if row["p_holm"] >= 0.05:
        return "not decided"
    return "higher" if row["difference"] > 0 else "lower"


def curves_section(results: Results) -> Section | None:
    """Every trial's validation metric, epoch by epoch."""
    run = results.run
    if run.epochs.empty:
        return None
    section = Section("learning-curves", "Learning curves")
    caption = (
        f"Validation {METRIC_NAMES[run.metric]} after each epoch of the search, a plot a cell. "
        "Grey: trials (at most 60 a cell). Bold: the trial whose learning rate was chosen."
    )
    chosen = {str(k): str(v) for k, v in results.winners["trial_id"].items()}
    shape = (run.metric, run.variants, run.label_ratios)
    figure = figures.learning_curves(run.epochs, chosen, *shape)
    section.figure(draw(results.run, "learning_curves", caption, figure, "44rem"))
    return section


def lr_section(results: Results) -> Section | None:
    """Where the search looked, and what it chose."""
    run = results.run
    if run.trials.empty:
        return None
    section = Section("learning-rates", "Learning rates")
    caption = (
        f"Validation {METRIC_NAMES[run.metric]} of each trial against its learning rate, a plot a "
        "cell. An optimum at the edge of a plot means that the range was too narrow there."
    )
    shape = (run.metric, run.variants, run.label_ratios)
    chosen = tables.chosen_lrs(run)
    figure = figures.lr_search(run.trials, chosen, *shape)
    section.figure(draw(results.run, "lr_search", caption, figure, "44rem"))
    return section


def leaderboard_section(results: Results) -> Section | None:
    """The best trials of each cell."""
    run = results.run
    if run.trials.empty:
        return None
    section = Section("leaderboard", "Leaderboard")
    ranked = leaderboard(run.trials, run.metric)
    ranked = ranked[ranked["state"] != "FAIL"].groupby("cell").head(TOP)
    rows = []
    for row in ranked.to_dict("records"):
        state = str(row["state"]).lower()
        cells = [Cell(str(row["rank"])), Cell(str(row["trial_id"]), "t"), Cell(row["cell"], "t")]
        cells += [Cell(state, "t"), _number(row["lr"], ".1e")]
        cells += [_number(row[k], ".4f") for k in ("val_f1", "val_acc", "val_loss")]
        key = "" if pd.isna(row["epochs"]) else f"{row['epochs']:g}"
        cells += [Cell(epochs(row), key=key), _number(row["seconds"], ".1f")]
        rows.append(Row(cells))
    names = ["#", "<Trial", "<Cell", "<State", "lr", "Validation F1", "Accuracy", "Loss"]
    caption = (
        f"The best {TOP} trials of each cell by validation {METRIC_NAMES[run.metric]}, ranked over "
        "the whole study; in brackets the best epoch. All trials are in trials.parquet. A pruned "
        "trial is never chosen."
    )
    section.table(Grid("Leaderboard", [*names, "Epochs", "s"], rows, caption, sortable=True))
    return section


def _number(value: float, form: str) -> Cell:
    return Cell(number(value, form), key="" if pd.isna(value) else f"{value:.10g}")


def encoders_section(results: Results) -> Section | None:
    """The pretrained encoders beside an untrained one and the pixels."""
    run, found = results.run, results.encoders
    if found.empty:
        return None
    section = Section("encoders", "Encoders")
    if claim := _against_controls(found):
        section.text(claim)
    rows = []
    for row in found.to_dict("records"):
        name = _encoder_name(str(row["encoder"]))
        cells = [Cell(name, "t")]
        cells += [Cell(_text(row[k]), "t") for k in ("architecture", "objective")]
        cells += [Cell(number(row[k], ",.0f") or "–") for k in ("images", "epochs")]
        cells += [
            Cell(number(row["loss"], ".4f") or "–"),
            Cell(number(row["seconds"], ".0f") or "–"),
        ]
        cells += [Cell(number(row[k], ".3f") or "–") for k in ("probe_acc", "knn_acc")]
        rows.append(Row(cells))
    names = ["<Encoder", "<Architecture", "<Objective", "Images", "Epochs", "Loss", "s"]
    caption = (
        "Best first by linear probe. Loss: reconstruction of the validation images. Linear probe "
        "(logistic regression) and k-NN (k = 5, cosine): trained on the frozen features of all "
        "training images with their labels, accuracy on the validation images."
    )
    section.table(Grid("Encoders", [*names, "Linear probe", "k-NN"], rows, caption))
    if len(run.encoder_epochs):
        caption = "Reconstruction loss of each encoder against epochs of pretraining (Fig. 1)."
        figure = figures.autoencoder_loss(run.encoder_epochs)
        section.figure(draw(results.run, "fig1_autoencoder_loss", caption, figure, "26rem"))
    return section


def _encoder_name(name: str) -> str:
    named = {"random": "random (control: untrained)", "pixels": "pixels (control)"}
    return named.get(name, name)


def _text(value: object) -> str:
    return "–" if value is None or pd.isna(value) else str(value)  # type: ignore[call-overload]


def _against_controls(found: pd.DataFrame) -> str:
    """Whether the encoders beat the controls on frozen features; empty where nothing is known."""
    known = found[found["probe_acc"].notna()]
    control = known["encoder"].isin(CONTROLS)
    if not control.any() or control.all():
        return ""
    bar = float(known[control]["probe_acc"].max())
    best = known[control].sort_values("probe_acc")["encoder"].iloc[-1]
    over = int((known[~control]["probe_acc"] > bar).sum())
    total = int((~control).sum())
    verb = "beats" if over == 1 else "beat"
    if total == 1:
        verb = "beats" if over else "does not beat"
        return f"By linear probe, the encoder {verb} the best control, {best} ({bar:.3f})."
    return (
        f"By linear probe, {over} of {total} encoders {verb} the best control, {best} ({bar:.3f})."
    )


def latent_section(results: Results) -> Section | None:
    """The t-SNE map of the best encoder, and how clusters agree with species."""
    found = results.latents
    if found.points.empty:
        return None
    section = Section("latent-map", "Latent map")
    shown = _encoder_to_show(results)
    points = found.points[found.points["encoder"] == shown]
    caption = (
        f"t-SNE of {shown} by species (Fig. 2). All images of train, valid and test; features "
        "standardised, 50 principal components, perplexity 30, seed 0. Distances between groups "
        "mean little in t-SNE."
    )
    figure = figures.latent_map(points, "species")
    section.figure(draw(results.run, "fig2_tsne_species", caption, figure))
    caption = (
        f"The same map by cluster (Fig. 5). K-means with k = {len(run_species(points))} on the "
        "latent components, not on the plane; colours have nothing to do with those above."
    )
    figure = figures.latent_map(points, "cluster")
    section.figure(draw(results.run, "fig5_kmeans", caption, figure))
    section.table(_clusters_grid(found.clusters))
    return section


def run_species(points: pd.DataFrame) -> list[str]:
    """The species of a map's points."""
    return sorted(pd.unique(points["species"]))


def _encoder_to_show(results: Results) -> str:
    mapped = list(pd.unique(results.latents.points["encoder"]))
    ranked = [e for e in results.encoders["encoder"] if e in mapped and e not in CONTROLS]
    return str((ranked or mapped)[0])


def _clusters_grid(clusters: pd.DataFrame) -> Grid:
    rows, before = [], None
    for row in clusters.to_dict("records"):
        space = "latent" if row["space"] == "latent" else "t-SNE plane"
        cells = [Cell(_encoder_name(str(row["encoder"])), "t"), Cell(space, "t")]
        cells += [Cell(f"{row['k']}"), *(_with_interval(row, name) for name in CLUSTER_METRICS)]
        rows.append(Row(cells, group=before not in (None, row["encoder"])))
        before = row["encoder"]
    caption = (
        "How K-means clusters agree with species (NMI, ARI, purity by the best one-to-one "
        "assignment) and how separate they are (silhouette, in the space where they were found); "
        "95 % intervals over images, for the clusters as they are. Clusters of the t-SNE plane are "
        "the paper's; the plane distorts distances, so its silhouette is no evidence."
    )
    names = ["<Encoder", "<Space", "k", "NMI", "ARI", "Purity", "Silhouette"]
    return Grid("Clusters", names, rows, caption)


def confusion_section(results: Results) -> Section | None:
    """Which species are taken for which, by the best variant at the highest ratio."""
    run, cell = results.run, best_cell(results.run)
    rows = run.predictions[run.predictions["cell"] == cell]
    if rows.empty:
        return None
    section = Section("confusion", "Confusion")
    caption = (
        f"What {cell} calls the test images of each species, in percent over its "
        f"{rows['repeat'].nunique()} repeats. {cell} is the best variant at the highest label "
        "ratio by validation. Numbers under 10 % are left out."
    )
    figure = figures.confusion(rows, run.species)
    section.figure(draw(results.run, "confusion", caption, figure))
    wrong = rows[rows["true"] != rows["pred"]]
    pairs = wrong.groupby(["true", "pred"]).size().rename("times").reset_index()
    pairs = pairs.sort_values("times", ascending=False, kind="stable").head(5)
    if len(pairs):
        named = [
            f"{p.true} taken for {p.pred} ({p.times:,})" for p in pairs.itertuples(index=False)
        ]
        section.text(f"Most often wrong, in predictions over all repeats: {'; '.join(named)}.")
    return section


def run_section(results: Results) -> Section:
    """Configuration, data, cost, failures and versions."""
    run, config = results.run, results.run.config
    section = Section("how", "How it was run")
    section.pairs(_facts(run))
    if len(run.trials):
        section.heading("Cost")
        section.table(_cost_grid(run))
    failed = run.trials[run.trials["state"] == "FAIL"]
    if len(failed):
        section.heading("Failures")
        section.table(_failures_grid(failed))
    section.heading("Configuration")
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    section.code("The whole configuration", text)
    return section


def _facts(run: Run) -> list[tuple[str, str]]:
    data, config = run.study["data"], run.config
    search, metric = config.get("search", {}), METRIC_NAMES[run.metric]
    counts = ", ".join(f"{count:,} {split}" for split, count in run.counts.items())
    seconds = run.study.get("seconds")
    versions = run.study.get("versions") or {}
    return [
        ("Data", f"{data.get('root') or 'drawn by Mariposa'}, {data.get('image_size', '?')} px"),
        ("Images", counts or "–"),
        ("Data fingerprint", str(data.get("fingerprint", "–"))),
        ("Labels", f"{percents(run.label_ratios)} of train, {tables.validation_note(run)}"),
        ("Search", f"{search.get('trials', '?')} trials a cell, by validation {metric}"),
        ("Repeats", str(tables.configured_repeats(run))),
        ("Seed", str(config.get("seed", "–"))),
        ("Started", str(run.study.get("started", "–"))),
        ("Wall time", "–" if seconds is None else _duration(float(seconds))),
        ("Machine", str(run.study.get("machine", "–"))),
        ("Commit", str(run.study.get("commit") or "–")),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or "–"),
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cost_grid(run: Run) -> Grid:
    rows, before = [], None
    for cell, _, ratio in run.cells:
        trials = run.trials[run.trials["cell"] == cell]
        tests = run.evaluations[run.evaluations["cell"] == cell]
        states = trials["state"].value_counts()
        counts = [len(trials), *(int(states.get(s, 0)) for s in ("COMPLETE", "PRUNED", "FAIL"))]
        cells = [Cell(cell, "t"), *(Cell(f"{count:,}") for count in counts)]
        for frame in (trials, tests):
            cells.append(Cell(f"{frame['epochs'].sum():,.0f}"))
            cells.append(Cell(f"{frame['seconds'].sum():,.1f}"))
        rows.append(Row(cells, group=before not in (None, ratio)))
        before = ratio
    names = ["<Cell", "Trials", "Complete", "Pruned", "Failed"]
    names += ["Search epochs", "Search s", "Test epochs", "Test s"]
    caption = (
        "Cells have the same number of trials, not of epochs or seconds: seconds are of one "
        "trial's own time, summed over trials that ran side by side."
    )
    return Grid("Cost of each cell", names, rows, caption)


def _failures_grid(failed: pd.DataFrame) -> Grid:
    reasons = failed.assign(reason=failed["error"].map(first_line))
    groups = reasons.groupby(["cell", "reason"], sort=True)["trial_id"]
    rows = [
        Row([Cell(str(cell), "t"), Cell(f"{len(ids):,}"), Cell(str(reason) or "–", "long")])
        for (cell, reason), ids in groups
    ]
    return Grid("Failed trials", ["<Cell", "Trials", "<Reason"], rows)


SECTIONS = (
    table_section,
    differences_section,
    curves_section,
    lr_section,
    leaderboard_section,
    encoders_section,
    latent_section,
    confusion_section,
    run_section,
)
