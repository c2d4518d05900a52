"""docs/clients.md says what the tests say."""

import pytest

from tests.clients import CLIENTS, PAGE, Client, find_tests, page


def test_the_page_is_what_the_tests_make_of_it() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.clients`"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_client_has_a_test(client: Client) -> None:
    assert find_tests(client)
