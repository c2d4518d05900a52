"""API keys: found by their hashes, reloaded when their file changes, and never repeated."""

import os
from pathlib import Path

import pytest
import yaml

from serve_app.config.errors import ConfigError
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import RELOAD_S, Key, Keyring, generate_key, hash_of, parse_keys

KEYS = [generate_key() for _ in range(3)]


def entry(number: int, **more: object) -> dict[str, object]:
    return {"id": f"key-{number}", "hash": hash_of(KEYS[number]), "tenant": "acme", **more}


def write(path: Path, *entries: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(list(entries)))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    write(path, entry(0), entry(1, scopes=["generate", "operate"], priority="high"))
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(file: Path, clock: Clock) -> Keyring:
    return Keyring(Secret(file=file), clock)


def found(ring: Keyring, number: int) -> str | None:
    key = ring.find(KEYS[number])
    return None if key is None else key.id


def test_a_key_is_found_by_its_hash(ring: Keyring) -> None:
    assert [found(ring, number) for number in range(3)] == ["key-0", "key-1", None]
    assert ring.find("") is None
    assert ring.find(hash_of(KEYS[0])) is None


def test_every_key_is_compared_and_in_constant_time(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `==`, or an early end, how long it takes would say something of the hashes that are there."""
    compared: list[str] = []

    def compare(mine: str, theirs: str) -> bool:
        compared.append(mine)
        return mine == theirs

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert found(ring, 0) == "key-0"
    assert compared == [hash_of(KEYS[0]), hash_of(KEYS[1])]


def test_drawn_keys_are_256_bits_and_all_different() -> None:
    keys = {generate_key() for _ in range(100)}
    assert len(keys) == 100
    # Base64 has six bits a character.
    assert all(len(key.removeprefix("dk_")) * 6 >= 256 for key in keys)


def test_a_changed_file_is_taken_up_and_a_key_that_left_it_is_none(ring: Keyring, file: Path, clock: Clock) -> None:
    write(file, entry(2))
    assert found(ring, 0) == "key-0"
    clock.now += RELOAD_S
    assert [found(ring, number) for number in range(3)] == [None, None, "key-2"]


def test_a_file_put_in_the_others_place_is_noticed_by_itself(ring: Keyring, file: Path, clock: Clock) -> None:
    """As Kubernetes does with secrets; the newer file may look older."""
    other = file.with_name("other.yaml")
    write(other, entry(2))
    os.utime(other, (1, 1))
    other.replace(file)
    clock.now += RELOAD_S
    assert found(ring, 2) == "key-2"


@pytest.mark.parametrize("broken", ["", "[]", "- {id: a", "- {id: a}", "keys: []", None])
def test_a_broken_file_changes_nothing_and_is_told_once(
    broken: str | None, ring: Keyring, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    for _ in range(3):
        clock.now += RELOAD_S
        assert found(ring, 0) == "key-0"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    write(file, entry(2))
    clock.now += RELOAD_S
    assert found(ring, 2) == "key-2"


def test_keys_can_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEYS", f'[{{"id": "a", "hash": "{hash_of(KEYS[0])}", "tenant": "acme"}}]')
    key = Keyring(Secret(env="THE_KEYS")).find(KEYS[0])
    assert key is not None
    assert (key.tenant, sorted(key.scopes), key.priority) == ("acme", ["generate"], "normal")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hash": KEYS[0]}, r"keys\[0\].hash"),
        ({"scopes": []}, r"keys\[0\].scopes"),
        ({"scopes": [KEYS[0]]}, r"keys\[0\].scopes"),
        ({"tenant": ""}, r"keys\[0\].tenant"),
        ({"hsh": "x"}, "did you mean 'hash'"),
    ],
)
def test_what_is_wrong_is_named_and_what_stands_there_is_not(change: dict[str, object], complaint: str) -> None:
    """Somebody will put the key itself where its hash belongs."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_keys(yaml.safe_dump([entry(1, **change)]))
    assert KEYS[0] not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("id", "key-0"), ("hash", hash_of(KEYS[0]))], ids=["id", "hash"])
def test_a_key_is_there_once(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"the same {field}"):
        parse_keys(yaml.safe_dump([entry(0), entry(1) | {field: value}]))


def test_a_keys_line_is_one_of_the_file() -> None:
    key = Key(id="a", hash=hash_of(KEYS[0]), tenant="acme", scopes=frozenset({"operate", "generate"}), priority="low")
    assert "\n" not in key.to_line()
    assert parse_keys(f"{key.to_line()}\n") == (key,)
