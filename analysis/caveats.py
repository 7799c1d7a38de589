"""What a reader must know before the results: the study is incomplete, or its scores flatter."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.load import Run, cut_short
from analysis.wording import counted


def caveats(run: Run) -> list[str]:
    """One sentence each, the gravest last; none for a study that ended as it should."""
    return [*_unfinished(run), *_failed(run), *_out_of_time(run), *_same_hand(run), *_leaks(run)]


def _unfinished(run: Run) -> Iterator[str]:
    if run.state != "COMPLETE":
        yield f"This study is {run.state}: the page shows what its records hold so far."


def _failed(run: Run) -> Iterator[str]:
    failed = int((run.trials["state"] == "FAIL").sum())
    if failed:
        yield f"{failed:,} of {counted(len(run.trials), 'trial')} failed; the reasons are below."


def _out_of_time(run: Run) -> Iterator[str]:
    if run.out_of_time:
        search, cut = run.config["search"], int(cut_short(run.trials).sum())
        wanted = len(run.cells) * search["trials"]
        yield (
            f"The search was ended by search.max_seconds ({search['max_seconds']:g} s): "
            f"{len(run.trials):,} of {counted(wanted, 'trial')} began, and the clock cut {cut:,} "
            "of those short. What it chose may not be the best."
        )


def _same_hand(run: Run) -> Iterator[str]:
    drawn = {run.recipe(variant).get("pretrain_on") for variant in run.pretrained_as}
    if run.config.get("data", {}).get("root") is None and "drawn" in drawn:
        yield (
            "The images of this study are drawn by the program that drew those of the pretraining: "
            "on photographs such an encoder is worth less."
        )


def _leaks(run: Run) -> Iterator[str]:
    leaks = run.study["data"].get("leaks") or {}
    for split, count in leaks.items():
        if count:
            yield (
                f"{counted(count, f'{split} image')} {'is' if count == 1 else 'are'} in an earlier "
                "split as well, which flatters every score."
            )
