"""Formulas as MathML, which browsers lay out themselves: no script, no font to fetch.

A ``\\tag{3}`` becomes the number at the right margin.
"""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

TAG = re.compile(r"\\tag\{(\d+)\}")
WORD = re.compile(r"\\mathrm\{([^{}]+)\}")


def mathml(latex: str, display: str) -> str:
    # Words as text: latex2mathml makes a \mathrm of one letter italic, and of more single letters.
    words = WORD.sub(lambda word: r"\text{" + word[1].replace(r"\_", "_") + "}", latex)
    return convert(words.strip(), display=display)


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    latex = node.astext()
    tag = TAG.search(latex)
    number = f'<span class="eqno">({tag[1]})</span>' if tag else ""
    formula = mathml(TAG.sub("", latex), "block")
    self.body.append(f'<div class="math">{formula}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
