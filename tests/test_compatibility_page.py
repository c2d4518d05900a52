"""docs/compatibility.md says what the tables and the tests say."""

from tests.compatibility import PAGE, page


def test_the_page_is_what_its_tables_make_of_it() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.compatibility`"
