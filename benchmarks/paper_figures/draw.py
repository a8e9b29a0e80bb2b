#!/usr/bin/env python3
"""Draws the paper's figures beside ours, from what `paper_figures --json FILE` wrote.

    build/release/bin/paper_figures --json figures.json
    python3 benchmarks/paper_figures/draw.py figures.json docs/figures

Needs matplotlib (in a virtual environment on Debian).
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PAPER, OURS = "#b0b7c3", "#2f6fab"


def values_of(report, figure):
    return [value for value in report["values"] if value["figure"] == figure]


def pairs(axes, labels, values, unit):
    """Two bars for each value: the paper's and ours; fitted ones are hatched."""
    places = range(len(values))
    axes.bar([x - 0.2 for x in places], [v["paper"] for v in values], 0.4, color=PAPER, label="paper")
    axes.bar(
        [x + 0.2 for x in places],
        [v["ours"] for v in values],
        0.4,
        color=OURS,
        hatch=["//" if v["kind"] == "fitted" else "" for v in values],
        edgecolor="white",
        linewidth=0,
        label="Volley's planner (hatched: fitted)",
    )
    axes.set_xticks(list(places), labels, fontsize=8)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)


def by_model(report, figure, title):
    values = values_of(report, figure)
    models = list(dict.fromkeys(v["row"] for v in values))
    picture, panels = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3.4))
    for axes, model in zip(panels, models):
        of_model = [v for v in values if v["row"] == model]
        labels = [v["column"].replace("_", "\n").replace(", ", "\n") for v in of_model]
        pairs(axes, labels, of_model, of_model[0]["unit"] if model == models[0] else "")
        axes.set_title(model, fontsize=10)
    panels[0].legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.12), ncol=2)
    picture.suptitle(title, fontsize=11)
    return picture


def lines(report, figure, title, xlabel):
    values = values_of(report, figure)
    picture, axes = plt.subplots(figsize=(5, 3.4))
    x = [float(v["row"]) for v in values]
    axes.plot(x, [v["paper"] for v in values], "o", color=PAPER, label="paper, median")
    axes.plot(x, [v["ours"] for v in values], "-", color=OURS, label=f"model ({values[0]['kind']})")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(values[0]["unit"])
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return picture


def attention_nodes(report):
    values = values_of(report, "fig13")
    picture, panels = plt.subplots(1, 2, figsize=(8, 3.4))
    for axes, column in zip(panels, ("tpot_ms", "tokens_per_s_per_gpu")):
        chosen = [v for v in values if v["column"] == column]
        pairs(axes, [v["row"] for v in chosen], chosen, chosen[0]["unit"])
        axes.set_xlabel("attention nodes")
    panels[0].legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncol=2)
    picture.suptitle("Fig. 13: DBRX by the number of attention nodes", fontsize=11)
    return picture


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: draw.py FIGURES.json FOLDER")
    report = json.loads(pathlib.Path(sys.argv[1]).read_text())
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "volley"
    pictures = {
        "fig8": by_model(report, "fig8", "Fig. 8: decode throughput per GPU, 80 GB Ampere"),
        "fig9": by_model(report, "fig9", "Fig. 9: decode throughput per cost"),
        "fig10": lines(report, "fig10", "Fig. 10: M2N, 8 to 8", "bytes of a pair"),
        "fig11": lines(report, "fig11", "Fig. 11: M2N of 256 KB", "senders = receivers"),
        "fig12": by_model(report, "fig12", "Fig. 12: throughput by micro-batches"),
        "fig13": attention_nodes(report),
    }
    for name, picture in pictures.items():
        picture.tight_layout()
        picture.savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
