"""Importing this readies a process for algebra, whose first answer would take a second. `workers`' fork server imports it.

math-verify's parser builds its tables, and sympy its caches, kind of expression by kind of expression. A worker is forked with
them, so the one that replaces a killed one is as fast as its predecessor.
"""

from __future__ import annotations

import logging

from rlcore.grading.equal import same_value

_KINDS = [
    ("x+1", "1+x"),
    (r"2\sqrt{3}", r"\frac{x}{2}"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "[1,3)"),
    (r"\{1,2\}", "1,3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ x \end{pmatrix}"),
    ("x>3", r"(3,\infty)"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
    (r"\sin x", r"\log_2 3"),
    ("x^2+y^2=1", "x+y=1"),
    (r"(-\infty,2)\cup(3,\infty)", r"e^{i\pi}"),
    (r"\text{Evelyn}", "y"),
]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off; ours are on
for _gold, _answer in _KINDS:
    same_value(_gold, _answer)
