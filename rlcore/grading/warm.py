"""Importing this readies a process for algebra, whose first answer would take a second. `workers`' fork server imports it.

math-verify's parser builds its tables, and sympy its caches, kind of expression by kind of expression. A worker is forked with
them, so the one that replaces a killed one is as fast as its predecessor.
"""

from __future__ import annotations

import logging

from rlcore.grading.equal import same_value

_KINDS = [
    ("x^2+2x+1", "(x+1)^2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{x}{2}", r"\frac{2x}{4}"),
    ("(1,2)", "(1,3-1)"),
    ("[1,2)", "[1,3-1)"),
    (r"\{1,2\}", "2,1"),
    (r"\begin{pmatrix} 1 \\ x \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2x-x \end{pmatrix}"),
    ("x>3", r"(3,\infty)"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    (r"\sin x", r"\log_2 3"),
    ("y=2x+3", "y=3+2x"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"e^{2\pi}", r"e^{\pi+\pi}"),
    (r"\text{Evelyn}", "y"),
]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off; ours are on
for _gold, _answer in _KINDS:
    same_value(_gold, _answer)
