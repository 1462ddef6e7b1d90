"""The labels of mapped tasks."""

from __future__ import annotations


def map_index_template(label: str) -> str:
    """
    Return the template of a mapped task's label, which is a text in every DAG.

    With ``render_template_as_native_obj`` Jinja reads what a template renders to as Python. A label ``1984`` would
    become a number, at which Airflow fails the task after it has paid. A quoted label becomes the text in the quotes.

    :param label: The label, as a Jinja expression.
    """
    label = f"({label}) | string | truncate(60)"
    return f"{{{{ {label} | pprint if dag.render_template_as_native_obj else {label} }}}}"
