"""Drawings of the notebooks: lines, boxes and colours alone. What they show is computed by the
scripts and handed in. Each function draws one figure; full colours are methods, tints entity types.
"""

import html

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display
from matplotlib import patches, path
from sklearn.decomposition import PCA

COLOURS = {  # others are grey or black
    "direct-pooled": "#999999",
    "ensemble": "#56B4E9",
    "tsl-avg": "#E69F00",
    "tsl-sim": "#D55E00",
    "tsl-kl": "#009E73",
    "mtmt": "#0072B2",
    "mtmt-scaled": "#003D66",
    "self-pooled": "#B8A800",
    "mtmt-pooled": "#CC79A7",
}
TYPE_COLOURS = {
    "PER": "#99DDFF",
    "LOC": "#C7D84B",
    "ORG": "#FFAABB",
    "O": "#EEEEEE",
    "": "#CCCCCC",
}
INK = {"ha": "center", "va": "center"}


def setup_style():
    plt.style.use(__file__.replace(".py", ".mplstyle"))


def tint(tag):
    """The colour of a tag (B-PER) or of a type (PER)."""
    return TYPE_COLOURS.get(tag.split("-")[-1], "#D5C6F2")


def canvas(width, height, *limits):
    axis = plt.subplots(figsize=(width, height))[1]
    axis.axis(limits)
    axis.set_axis_off()
    return axis


def panels(n, width, height, sharey=False):
    figure = plt.figure(figsize=(width, height))
    return figure.subplots(1, n, squeeze=False, sharey=sharey)[0]


def cell(axis, x, y, width, height, text, **style):
    """A box around (x, y), and a text in it."""
    corner = (x - width / 2, y - height / 2)
    box = patches.Rectangle(corner, width, height, **style)
    axis.add_patch(box)
    axis.text(x, y, text, **INK)


def sketch(axis, drawing):
    """On each line a box, `colour x y width height | text`, or an arrow, `colour x y x y ...`"""
    for line in drawing.strip().split("\n"):
        place, bar, text = line.partition("|")
        shade, *numbers = place.split()
        numbers = np.array(numbers, float)
        if bar:
            cell(axis, *numbers, text.replace(";", "\n"), fc=shade, ec="black")
        else:
            corners = path.Path(numbers.reshape(-1, 2))
            arrow = patches.FancyArrowPatch(path=corners, color=shade)
            arrow.set(arrowstyle="-|>", mutation_scale=14)
            axis.add_patch(arrow)


STAGES = """
#BFE3F7  2.6  11.7 3.0 1.4 | K sources:;words and tags
#E3E3E3  6.25 11.7 2.7 1.4 | target:;words alone
#F7D9C4 10.5  11.7 2.8 1.4 | target's tags:;gold
#F4F4F4  2.6  7.9  3.4 4.2 |
#BFE3F7  2.6  9.25 3.0 1.1 | K recognisers;Eq. (1)
#BFE3F7  2.6  7.9  3.0 1.1 | K evaluators;Eq. (2)
#BFE3F7  2.6  6.55 3.0 1.1 | pooled: one of each,;of all sources
#BFE5D8  6.25 7.9  2.7 4.2 | what they say;of every word;of the target:;logits, vectors
#BFE3F7  9.2  7.9  2.0 1.3 | weights w;(3) (4)
white    6.25 4.35 2.7 1.3 | mixtures p and t;(5) (7)
#FBDF9D  9.2  4.35 2.0 1.3 | student q;(6) to (9)
#F7D9C4 10.05 1.15 3.7 1.3 | F1, gains,;intervals
0.2 2.2 11 2.2 10
0.2 3.4 11 3.4 10.35 8.8 10.35 8.8 8.55
0.2 5.8 11 5.8 10
0.2 7 11 7 10.55 9.5 10.55 9.5 8.55
0.2 7.6 11.7 8.3 11.7 8.3 10.8 10.7 10.8 10.7 4.35 10.2 4.35
0.2 4.3 7.9 4.9 7.9
0.2 6.2 5.8 6.2 5
0.2 9.2 7.25 9.2 5.35 7.2 5.35 7.2 5
0.2 7.6 4.35 8.2 4.35
0.2 2.6 6 2.6 3.1 8.7 3.1 8.7 3.7
0.2 9.6 3.7 9.6 1.8
#D55E00 11.4 11 11.4 1.8
"""


def stages():
    """The data flow of the four scripts."""
    axis = canvas(7, 6.8, 0, 12.2, 0, 13)
    bands = {
        "04_evaluate.py": (0.1, 2.5),
        "03_distill.py": (2.7, 5.4),
        "02_teachers.py": (5.6, 10.4),
        "01_data.py": (10.6, 12.9),
    }
    for name, (low, high) in bands.items():
        axis.axhspan(low, high, color="#F4F4F4")
        axis.text(0.4, (low + high) / 2, name, rotation=90, **INK)
    sketch(axis, STAGES)
    axis.text(2.8, 3.3, "a student may start from it")
    axis.text(0.9, 1.1, "orange: opened to score,\nin stage 4 alone")


def tagged(rows):
    """Sentences with their entities on tints: [(label, words, tags or None), ...]"""
    lines = []
    for label, words, tags in rows:
        lines.append(f"<tr><td>{label}</td><td style='text-align: left; font-size: 120%'>")
        for word, tag in zip(words, tags or ["O"] * len(words)):
            word = html.escape(word)
            if tag != "O":
                word = f"<b style='background: {tint(tag)}'>{word}</b><sub>{tag}</sub>"
            lines.append(f"{word} ")
    display(HTML(f"<table>{''.join(lines)}</table>"))


def board(table, colours):
    """A DataFrame of texts as cells under the names of its columns."""
    height, width = table.shape
    axis = plt.subplots(figsize=(1.4 + 0.78 * width, 0.5 + 0.5 * height))[1]
    for (y, x), text in np.ndenumerate(table):
        cell(axis, x, y, 0.94, 0.9, text, fc=colours[y][x])
    axis.axis([-0.5, width - 0.5, height - 0.5, -0.5])
    axis.set_xticks(range(width), table.columns)
    axis.set_yticks(range(height), table.index)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.set_frame_on(False)


def likeliest(said, tags):
    """Text and colour of a tag, or of the likeliest of C probabilities."""
    if isinstance(said, str):
        return said, tint(said)
    top = max(said.tolist())
    tag = tags[said.argmax()]
    return f"{tag}\n{top:.2f}", (tint(tag), max(0.3, top))


def word_by_word(words, rows, tags, alpha=None):
    """What each of [(label, (M, C) probabilities or M tags), ...] says of M words."""
    texts = {}
    colours = []
    for name, said in rows:
        cells = [likeliest(x, tags) for x in said]
        texts[name] = [text for text, _ in cells]
        colours.append([shade for _, shade in cells])
    if alpha is not None:
        texts[r"$\alpha$"] = [f"{x:.2f}" for x in alpha]
        colours.append(["white"] * len(words))
    table = pd.DataFrame.from_dict(texts, orient="index", columns=words)
    board(table, colours)


def mask_boxes(rows):
    """Sub-tokens, filled where f is true: [(pieces, first, tags or None), ...]"""
    width = max(len(pieces) for pieces, _, _ in rows)
    height = len(rows)
    axis = canvas(0.74 * width, height, -0.5, width - 0.5, height - 0.5, -0.5)
    for y, (pieces, first, tags) in enumerate(rows):
        names = dict(zip(first, tags or [""] * len(first)))
        for x, piece in enumerate(pieces):
            text = f"{names.get(x, '')}\n{piece}\n{x}"
            shade = tint(names[x]) if x in names else "white"
            line = 2.5 if x in names else 0.5
            cell(axis, x, y, 0.9, 0.8, text, fc=shade, ec="black", lw=line)


def heat(table, low, high, label=""):
    """A DataFrame as a matrix with its numbers."""
    form = "{:.0f}" if high > 2 else "{:.2f}"
    strength = 0.6 * (table.to_numpy() - low) / (high - low)
    texts = table.map(form.format)
    shades = plt.cm.Blues(strength)
    board(texts, shades)
    plt.gcf().supxlabel(label)


def piles(groups, target):
    """Sentences of {source: (N, H)} and a target on their two main axes, Eqs. (3) and (4)."""
    axes = PCA(2).fit(torch.cat(list(groups.values())))
    for name, g in groups.items():
        plt.scatter(*axes.transform(g).T, s=9, alpha=0.4, label=name)
    plt.scatter(*axes.transform(target).T, s=9, color="black", label="target")
    plt.legend(loc=(1, 0.2), markerscale=3)
    plt.xlabel("first main axis of g")
    plt.ylabel("second main axis")


def tag_compass(vectors, names):
    """Tags as arrows on a circle, {title: (n, 2) vectors}, Eq. (2)."""
    axes = panels(len(vectors), 3.4 * len(vectors), 3.4)
    for axis, (title, spots) in zip(axes, vectors.items()):
        spots = np.array(spots) / np.linalg.norm(spots, axis=1, keepdims=True)
        axis.add_patch(plt.Circle((0, 0), 1, fill=False))
        for k, (x, y) in enumerate(spots):
            shade = tint(names[k])
            axis.arrow(0, 0, x, y, width=0.06, length_includes_head=True, fc=shade)
            beside = sum(spots[:k] @ spots[k] > 0.97)  # names of the same place
            patch = {"fc": shade, "ec": "none", "pad": 2}
            axis.text(1.3 * x, 1.3 * y - 0.3 * beside, names[k], bbox=patch, **INK)
        axis.set_title(title)
        axis.axis([-1.7, 1.7, -1.7, 1.7])
        axis.set_aspect("equal")
        axis.set_axis_off()


def weight_shapes(alpha, beta, gamma):
    """The three functions of Eq. (8)."""
    axes = panels(4, 11, 2.9)
    x = torch.linspace(0, 1, 101)
    one = torch.eye(2)[[0] * len(x)]                                        # (101, 2) sure of one
    axes[0].plot(x, alpha(x[:, None]))
    axes[1].plot(x, beta(x))
    for axis, scaled in zip(axes[2:], (False, True)):
        axis.plot(x, gamma(one, one, x, scaled), label="recognisers: same")
        axis.plot(x, gamma(one, one.flip(1), x, scaled), "--", label="different")
    titles = [r"$\alpha$", r"$\beta$", r"$\gamma$, as published", r"$\gamma$, scaled"]
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="t", ylim=(0, 1.05))
    for axis in axes[1:3]:
        axis.axvspan(0.2689, 0.7311, color="#F7D9C4")  # all that a published t can be
    axes[0].set(xlabel="largest probability in p", ylabel="weight")
    axes[2].legend()


def slopes(losses, steps=0):
    """A ball on each loss after some gradient steps, {name: loss(z, p)}."""
    x = torch.linspace(-8, 8, 161)
    p = torch.tensor([[0.05, 0.95]])                                        # of two tags
    axes = panels(len(losses), 6.8, 2.9)
    for axis, (name, loss) in zip(axes, losses.items()):
        axis.plot(x, loss(torch.stack([0 * x, x], -1), p))
        z = torch.tensor([[0.0, -6.0]])
        for _ in range(steps):
            slope = torch.func.grad(lambda z: loss(z, p).sum())
            z = z - 3 * slope(z)
        axis.plot(z[0, 1] - z[0, 0], loss(z, p), "o")
        axis.set(title=f"{name}, {steps} steps", ylabel="loss", ylim=(-0.3, 8))
        axis.set_xlabel("logit of the right tag less the other")


LOSS_MAP = r"""
white    1.2 5.7 2.0 1 | i: {words[0]}
#BFE3F7  4.3 5.7 2.6 1 | recognisers: $p_i$;{tops[0]}
#FBDF9D  7.9 5.7 3.0 1 | $e_i$ = {e[0]:.3f}: is the;student's $q_i$ near $p_i$?
#EDEDED 11.7 5.7 3.0 1 | $\alpha_i$ = {alpha[0]:.2f}: is $p_i$ sure?
white    1.2 3.7 2.0 1 | pair (i, j)
#BFE5D8  4.3 3.7 2.6 1 | evaluators: $t_{{ij}}$;same class? {t:.2f}
#FBDF9D  7.9 3.7 3.0 1 | $L_{{ij}}$ = {bce:.3f}: are the;student's $h$ as alike as $t$?
#EDEDED 11.7 3.7 3.0 1 | $\beta$ = {beta:.2f}: is $t$ sure?;$\gamma$ = {gamma:.2f}: agreed?
white    1.2 1.7 2.0 1 | j: {words[1]}
#BFE3F7  4.3 1.7 2.6 1 | recognisers: $p_j$;{tops[1]}
#FBDF9D  7.9 1.7 3.0 1 | $e_j$ = {e[1]:.3f}: is the;student's $q_j$ near $p_j$?
#EDEDED 11.7 1.7 3.0 1 | $\alpha_j$ = {alpha[1]:.2f}: is $p_j$ sure?
"""


def loss_map(words, tops, t, e, bce, alpha, beta, gamma, lam):
    """Eq. (9) for two words; tops are what the recognisers say, like "PER 0.82"."""
    drawing = LOSS_MAP.format(**locals())
    axis = canvas(9.6, 4.5, 0, 13.3, -0.8, 6.4)
    sketch(axis, drawing)
    for y in (5.7, 3.7, 1.7):
        for left in (2.2, 5.6, 9.4):
            sketch(axis, f"0.2 {left} {y} {left + 0.8} {y}")
    one = (alpha[0] * e[0] + alpha[1] * e[1]) / 2
    two = lam * gamma * beta * bce
    formula = r"L = mean($\alpha_i\,e_i$) + $\lambda$ mean($\gamma_{ij}\,\beta_{ij}\,L_{ij}$)"
    total = rf"= {one:.3f} + {two:.3f} = {one + two:.3f}     ($\lambda$ = {lam:g})"
    axis.text(6.6, -0.2, f"{formula}\n{total}", size=14, **INK)


def log_terms(logs):
    """The two tasks by step, from {method: its log.csv}."""
    axes = panels(2, 8, 2.9)
    terms = ["recognition", "similarity"]
    labels = ["loss", "loss above its floor"]
    for axis, term, label in zip(axes, terms, labels):
        for n, (method, log) in enumerate(logs.items()):
            if term in log:
                shade = COLOURS.get(method, "black")
                log.plot("step", term, ax=axis, label=method, color=shade, lw=6 / (n + 1))
        axis.set(title=term, ylabel=label, ylim=0)  # after all curves, so that none is cut off


def confusion(counts):
    """What each system calls the words of each type: {system: DataFrame gold x said}."""
    kinds = list(counts.values())[0].index
    height = 0.9 + 0.38 * len(counts)
    axes = panels(len(kinds), 2.2 + 2.3 * len(kinds), height, True)
    for axis, kind in zip(axes, kinds):
        table = pd.DataFrame({name: x.loc[kind] for name, x in counts.items()})
        table = 100 * (table / table.sum()).T                               # system x said
        tints = [tint(said) for said in table]
        table.plot.barh(ax=axis, color=tints, stacked=True, legend=False, width=0.85)
        for said, drawn in zip(table, axis.containers):
            names = [said if x > 15 else "" for x in table[said]]
            axis.bar_label(drawn, names, label_type="center")
        axis.set_title(f"words that are {kind}, called (%)")
    axes[0].invert_yaxis()


def dumbbells(tables):
    """Two dots in each row, joined by a line: {panel: DataFrame of two columns}."""
    height = 1.2 + 0.4 * max(map(len, tables.values()))
    axes = panels(len(tables), 3 + 2.2 * len(tables), height, True)
    for axis, (title, table) in zip(axes, tables.items()):
        axis.hlines(table.index, table.min(axis=1), table.max(axis=1), color="0.6")
        for name, marker, size in zip(table, "os", (13, 7)):  # both are seen where they agree
            axis.plot(table[name], table.index, marker, markersize=size, label=name)
        axis.set(title=title, ymargin=0.12)
    axes[0].invert_yaxis()
    axes[-1].legend(loc=(1, 0.5))


def forest(series, xlabel):
    """Differences with their intervals: {name: rows of comparisons.csv}, by index."""
    labels = list(series.values())[0].index
    axis = panels(1, 6.4, 1.2 + 0.34 * len(labels))[0]
    for n, (name, rows) in enumerate(series.items()):
        y = np.arange(len(labels)) + 0.24 * n
        shade = COLOURS.get(name, str(0.1 + 0.5 * n))
        axis.hlines(y, rows.ci_low, rows.ci_high, color=shade, linewidth=3.5)
        axis.plot(rows.delta_f1, y, "os"[n], color=shade, mec="black", label=name)
    axis.axvline(0, color="black")
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel=xlabel, ymargin=0.1)
    axis.invert_yaxis()
    axis.figure.legend(loc="outside upper center", ncols=2)
