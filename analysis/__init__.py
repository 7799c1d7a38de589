"""From the records of a study to tables, figures and the report. Needs neither Ray nor torch.

from analysis import load
run = load("runs/quick")
run.trials.groupby("cell").val_f1.max()
"""

# Imported here rather than on demand: ``analysis.load`` would otherwise be the module of that name
# as soon as another module had imported it. It imports nothing heavy.
from analysis.load import Run, load

__all__ = ["Run", "load"]
