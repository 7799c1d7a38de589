"""Whether a finished study still has all of its files, whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.sealing import unseal_end, unseal_parquet
from data.storage import InputError, Location
from study.records import ON_CARDS, is_whole, read_table


def missing_or_damaged(
    run: Location, repeats: int, noise: bool = False, int8: bool = False
) -> list[str]:
    """Files of a finished study that are gone, or whose own checksum is wrong, by name.

    Args:
        run: its folder.
        repeats: of the final evaluation; 0: there was none.
        noise: whether it tests in noise.
        int8: whether it compares the best classifiers with their int8 forms.
    """
    tables = ["trials", "epochs"]
    if not _anything_to_evaluate(run):
        repeats = 0
    tables += ["evaluations", "evaluation_epochs", "predictions"] if repeats else []
    tables += ["robustness"] if repeats and noise else []
    tables += ["quantised"] if repeats and int8 else []
    tables += [name for name in ON_CARDS if (run / f"{name}.parquet").is_file()]
    files = [f"{table}.parquet" for table in tables]
    bad = [name for name in files if not is_whole(run / name, unseal_parquet)]
    bad += [] if (run / "optuna.db").is_file() else ["optuna.db"]
    if bad or not repeats:
        return bad
    cells = {row["cell"] for row in read_table(run / "evaluations.parquet")}
    models = [f"models/{cell}.{kind}" for cell in cells for kind in ("json", "safetensors")]
    bad = [name for name in models if not (run / name).is_file()]
    return bad + [
        file for file, unseal in _of_encoders(run, noise) if not is_whole(run / file, unseal)
    ]


def _anything_to_evaluate(run: Location) -> bool:
    """Whether a trial is COMPLETE; search.max_seconds may end a study before one is."""
    try:
        return any(row["state"] == "COMPLETE" for row in read_table(run / "trials.parquet"))
    except InputError:  # damaged
        return True


def _of_encoders(run: Location, noise: bool) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """What encoders leave, those of the search the most, each with how it is unsealed."""
    made = read_table(run / "encoders_made.parquet")
    encoders = [row["encoder"] for row in made if row["repeat"] is None]
    controls = ["random", "pixels"] if made else []
    for name in [row["encoder"] for row in made] + controls:
        yield f"features/{name}.npy", unseal_end
    for name in encoders + controls if noise else ():
        yield f"features/{name}.noise.parquet", unseal_parquet
    for name in encoders:
        yield f"reconstructions/{name}.npz", unseal_end
    if encoders:
        yield "reconstructions.parquet", unseal_parquet
