"""What HNC adds to the examples of Monte-Carlo trees and what it costs; a tree before and after it, drawn.

    python -m benchmarks.hnc        grows the trees of recipes/annotate_chain.yaml in --folder, if they are not there

Writes docs/hnc.svg and the numbers in docs/annotation.md.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, finish, processor
from benchmarks.report import table
from rlcore.data.hnc import hnc
from rlcore.data.step_examples import Kind
from rlcore.data.tree_examples import tree_examples
from rlcore.data.trees import AnnotatedTree, Tree, read_trees

DOCS = Path(__file__).parent.parent / "docs"
NUMBERS = re.compile(r"(<!-- written by benchmarks/hnc.py -->\n).*(<!-- to here -->\n)", re.DOTALL)
CHANGED = (1, 2, 3)  # trees that HNC makes of each
DRAWN = 60  # nodes of the tree in the picture, at most


def main() -> None:
    options = arguments((__doc__ or "").split("\n")[0], folder="runs/benchmarks/annotate_chain")
    from rlcore import jobs
    from rlcore.recipe.load import load

    folder = Path(options.folder)
    if not (folder / "summary.json").is_file():
        jobs.run(load(["annotate_chain", f"output={folder}", f"threads={options.threads}"]), resume=True)
    summary = json.loads((folder / "summary.json").read_text())
    result = {"annotation": summary, **measured(trees := read_trees(str(folder / "trees.jsonl")))}
    page = DOCS / "annotation.md"
    told = "\n".join(numbers(result, options.threads))
    page.write_text(NUMBERS.sub(lambda place: f"{place[1]}{told}\n{place[2]}", page.read_text()))
    small = (tree for tree in trees if len(tree.nodes) <= DRAWN)
    draw(max(small, key=lambda tree: len({node.score for node in tree.nodes})), DOCS / "hnc.svg")
    finish(result, options)


# -- what is measured ----------------------------------------------------------------------------------------------------


def measured(trees: Sequence[Tree]) -> dict[str, Any]:
    """Distinct examples, and seconds: of HNC alone, and of drawing the examples with and without it."""
    began = time.perf_counter()
    for tree in trees:
        hnc(tree, 0)
    result: dict[str, Any] = {"hnc_s": time.perf_counter() - began}
    for kind in ("prm", "hrm"):
        began = time.perf_counter()
        result[kind] = drawn(kind, trees, 0)
        result[f"{kind}_s"] = time.perf_counter() - began
    for count in CHANGED:
        began = time.perf_counter()
        result[f"hnc {count}"] = drawn("hrm", trees, count)
        result[f"hnc {count}_s"] = time.perf_counter() - began
        result[f"again {count}"] = drawn_again(trees, count)
    return result


def drawn(kind: Kind, trees: Sequence[Tree], changed: int) -> int:
    return sum(len(tree_examples(kind, AnnotatedTree(tree, changed, 0))) for tree in trees)


def drawn_again(trees: Sequence[Tree], times: int) -> int:
    """The control: from the unchanged trees, so many times more."""
    return sum(
        len(
            {
                (example.previous, example.current, example.label)
                for seed in range(times + 1)
                for example in tree_examples("hrm", AnnotatedTree(tree, 0, seed))
            }
        )
        for tree in trees
    )


# -- the page ------------------------------------------------------------------------------------------------------------


def numbers(result: Mapping[str, Any], threads: int) -> Iterator[str]:
    run, without = result["annotation"], result["hrm"]
    yield f"`recipes/annotate_chain.yaml` on {processor()}, {threads} thread{'s' * (threads > 1)}: {run['trees']} trees of"
    yield f"{run['nodes']:,} nodes in {run['seconds']:.0f} s, {run['nodes_per_second']:,.0f} nodes/s ({run['tokens']:,} tokens;"
    yield f"the most that it could have been: 249,920 nodes, 12,800,000 tokens). HNC of all of them took {result['hnc_s']:.2f}"
    yield f"s, **{result['hnc_s'] / run['seconds']:.1%}** of that time, and with drawing the examples of the changed trees"
    yield f"{result['hnc 1_s'] - result['hrm_s']:.2f} s, {(result['hnc 1_s'] - result['hrm_s']) / run['seconds']:.1%}."
    yield ""
    rows = [
        ("`kind: prm`", f"{result['prm']:,}", f"{result['prm'] / without:.2f}", ""),
        ("`kind: hrm`", f"{without:,}", "1", ""),
        *(
            (
                f"`kind: hrm`, `hnc: {count}`",
                f"{result[f'hnc {count}']:,}",
                f"**{result[f'hnc {count}'] / without:.2f}**",
                f"{result[f'again {count}'] / without:.2f}",
            )
            for count in CHANGED
        ),
    ]
    yield from table(("", "distinct examples", "ratio", "the same by drawing again without HNC"), rows)


# -- the picture ---------------------------------------------------------------------------------------------------------


def draw(tree: Tree, path: Path) -> None:
    """The tree as it was grown, and as HNC changes it."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    after = hnc(tree, 0)
    moved = [i for i, node in enumerate(tree.nodes) if node.parent != after.nodes[i].parent]
    left = [parent for i in moved if (parent := tree.nodes[i].parent) is not None]
    with matplotlib.rc_context({"svg.hashsalt": "hnc", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(12, 0.24 * sum(not below for below in tree.children) + 0.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, each, title in zip(panels, (tree, after), ("as grown", "after HNC"), strict=True):
            places = layout(each)
            for i, node in enumerate(each.nodes):
                (x, y), heavy = places[i], i in moved
                if node.parent is not None:
                    px, py = places[node.parent]
                    axes.plot(
                        [px, px + 0.5, x], [py, y, y], color="C3" if heavy else "0.75", lw=1.5 if heavy else 0.8, zorder=1
                    )
                ring = "C3" if heavy else "C0" if i in left else "0.3"
                axes.scatter(
                    x, y, s=130, c=[node.score], cmap="RdYlGn", vmin=0, vmax=1, edgecolors=ring, linewidths=1.6, zorder=2
                )
                axes.text(x, y, str(node.visits), ha="center", va="center", fontsize=6.5, zorder=3)
                said = " ⊕ ".join(node.steps) or tree.problem
                if not each.children[i]:
                    axes.text(x + 0.09, y, said, va="center")
                else:
                    axes.text(x, y + 0.75, f"{said}   {node.score:.2f}", ha="center", va="center", fontsize=7)
            axes.set(title=title, xlim=(-0.4, max(each.heights) + 0.9), ylim=(-1, max(y for _, y in places) + 1.2))
            axes.axis("off")
        figure.colorbar(ScalarMappable(cmap="RdYlGn"), ax=panels, label="score", shrink=0.4)
        figure.savefig(path, metadata={"Date": None})


def layout(tree: Tree) -> list[tuple[float, float]]:
    """Where each node stands: by its height, and between the leaves below it, which stand one below the other."""
    children, heights = tree.children, tree.heights
    ys: dict[int, float] = {}
    waiting, leaves = [0], 0
    while waiting:
        i = waiting[-1]
        if not children[i]:
            ys[i], leaves = float(leaves), leaves - 1
        elif all(child in ys for child in children[i]):
            ys[i] = sum(ys[child] for child in children[i]) / len(children[i])
        else:
            waiting += [child for child in reversed(children[i]) if child not in ys]
            continue
        waiting.pop()
    lowest = min(ys.values())
    return [(float(heights[i]), ys[i] - lowest) for i in range(len(tree.nodes))]


if __name__ == "__main__":
    main()
