"""Sphinx: `make docs` builds these pages into build/docs, with warnings as errors."""

project = "dgmfast"
author = "the developers of dgmfast"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["runs"]
# Every build runs the notebooks anew, and an error in a cell is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
html_theme = "furo"
html_title = "dgmfast"
suppress_warnings = ["misc.highlighting_failure"]


def _mathml(display: str):
    """Formulas as MathML, which a browser shows without a script from the network."""
    from docutils import nodes
    from latex2mathml.converter import convert

    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", _mathml("inline"), _mathml("block"))


html_math_renderer = "mathml"
