"""From the records of a study to tables, figures and the report. Needs neither Ray nor torch.

from analysis import load
run = load("runs/quick")
run.trials.groupby("cell").val_f1.max()
"""

# Bound here and at once: fetched lazily, ``analysis.load`` would be the module of that name
# whenever another module had imported it before. It imports nothing heavy.
from analysis.load import Run, load

__all__ = ["Run", "load"]
