"""Tables of measured results: their form, and their places in a page."""

import pytest

from tools import tables


def test_a_table_has_a_row_for_each_result():
    assert tables.markdown(["name", "bits"], [["a", "1.0"], ["b", "2.2"]]) == (
        "| name | bits |\n| --- | --: |\n| a | 1.0 |\n| b | 2.2 |"
    )


def test_only_what_is_between_the_marks_is_replaced(monkeypatch):
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: "new", "other": lambda: "not here"})
    page = "before\n<!-- one -->\nold\n<!-- /one -->\nafter\n"
    once = tables.with_tables(page)
    assert once == page.replace("old", "new") and tables.with_tables(once) == once


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_can_be_made_of_the_shipped_results(name):
    heading, line, *rows = tables.TABLES[name]().splitlines()
    assert rows and {row.count("|") for row in (heading, line, *rows)} == {heading.count("|")}
