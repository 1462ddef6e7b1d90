"""How Sphinx builds the site: ``make docs``. No request leaves the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
# Airflow reads its home when it is imported, and writes into it.
os.environ["AIRFLOW_HOME"] = str(REPOSITORY / "build" / "airflow-home")

from sphinx.ext.intersphinx import missing_reference  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402

from airflow_provider_whisul import __version__  # noqa: E402
from dev.docs_site import full_name, page_source, plain_signature, plain_type, write_inventory  # noqa: E402

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "airflow-provider-whisul"
author = "the authors of airflow-provider-whisul"
release = version = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["inventories", "compose", "grafana"]
nitpicky = True

# The anchors of headings are those of GitHub.
myst_heading_anchors = 4

# Signatures without types: the descriptions of the parameters have them.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
add_module_names = False
toc_object_entries_show_parents = "hide"

nitpick_ignore_regex = [
    # Types of the provider's inside, which no DAG names.
    ("py:class", r"(.*\.)?(Clock|DeadlineSource|Directives|LookUp|NotBefore|SubmissionId|WaitingPoll)"),
    # A task, its context, and what its function takes: not in one place in the references of all Airflows.
    ("py:class", r"Arguments|Context|Task"),
    # The words that an argument may be.
    ("py:class", r"'\w+'"),
]
# Results are shown with … for what is left out, which is no Python.
suppress_warnings = ["misc.highlighting_failure"]

INVENTORIES = REPOSITORY / "build" / "inventories"
intersphinx_mapping = {
    "airflow": ("https://airflow.apache.org/docs/apache-airflow/stable", str(write_inventory("airflow", INVENTORIES))),
    "python": ("https://docs.python.org/3", str(write_inventory("python", INVENTORIES))),
}
intersphinx_timeout = 1

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"airflow-provider-whisul {version}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    if Path(app.env.doc2path(name)).suffix == ".md":
        content[0] = page_source(name, content[0])


def _find(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element) -> Element | None:
    """Find a name that the code gives without its module."""
    name = full_name(node.get("reftarget", ""), env.domains.python_domain.objects)
    if name is None or node.get("refdomain") != "py":
        return None
    node["reftarget"] = name
    found = env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, text)
    return found or missing_reference(app, env, node, text)


def _describe(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out what is of no use to a reader."""
    types = app.env.current_document.autodoc_annotations.get(name, {})
    types.update({argument: plain_type(text) for argument, text in types.items()})
    if what == "class" or types.get("return") == "~typing.Any":
        types.pop("return", None)
    return (plain_signature(signature), returns) if signature else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what changes the pages before Sphinx reads them."""
    for module in ("whisul", "whisul_batch"):
        analyzer = ModuleAnalyzer.for_module(f"airflow_provider_whisul.decorators.{module}")
        analyzer.analyze()
        # They are for type checkers. The signature below them says the same.
        analyzer.overloads.clear()
    app.connect("source-read", _read)
    # After those of autodoc and intersphinx.
    app.connect("autodoc-process-signature", _describe, priority=900)
    app.connect("missing-reference", _find, priority=900)
    return {"parallel_read_safe": True}
