from control.core import tables


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_stand_to_the_right() -> None:
    shown = tables.render(("node", "replicas"), [("node-1", 2), ("a", 1234)])
    assert ["NODE    REPLICAS", "node-1         2", "a          1,234"] == shown.split("\n")


def test_an_empty_cell_is_shown_as_a_dash() -> None:
    assert "a   -  c" == tables.render(("x", "y", "z"), [("a", "", "c"), ("bb", "", "c")]).split("\n")[1]


def test_colour_is_added_after_the_padding_so_that_columns_stay_aligned() -> None:
    shown = tables.render(
        ("state", "node"), [("up", "a"), ("loading", "b")], paint=lambda h, t: f"<{t}>" if h == "state" else t
    )
    assert ["STATE    NODE", "<up     >  a", "<loading>  b"] == shown.split("\n")


def test_a_table_without_rows_still_shows_its_headings() -> None:
    assert "NODE  AGE" == tables.render(("node", "age"), [])


def test_fractions_have_two_places_and_thousands_are_parted() -> None:
    assert ["1,000", "0.50"] == tables.render(("count", "share"), [(1000, 0.5)]).split("\n")[1].split()
