"""Draw the loss curves of a run: python examples/plot_losses.py RUN_DIR picture.png"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from msde.monitor.writer import read_metrics

PANELS = {
    "loss/{}contrastive": "contrastive",
    "loss/{}2d_to_3d": "2D to 3D (3 for a zero prediction)",
    "loss/{}3d_to_2d": "3D to 2D (1 for a zero prediction)",
    "accuracy/{}contrastive": "contrastive pair accuracy",
}

rows = read_metrics(Path(sys.argv[1]) / "metrics.jsonl")
figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.2), layout="constrained")
for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
    for part, label, style in (("", "training", "-"), ("validation/", "held out", "o-")):
        key = name.format(part)
        series = [(row["step"], row[key]) for row in rows if key in row]
        if not series:  # nothing was held out
            continue
        axis.plot(*zip(*series, strict=True), style, label=label, markersize=3, linewidth=1.2)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("optimizer step")
    axis.grid(alpha=0.3)
    if name.startswith("loss"):
        axis.set_yscale("log")
axes[0].legend()
figure.savefig(sys.argv[2], dpi=80)
