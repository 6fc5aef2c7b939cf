"""What an s3:// location may say."""

import pytest

from imager.errors import UsageError
from imager.repository.backend.s3_location import Location, LockMode
from imager.units import DAY


def test_all_of_it() -> None:
    text = "s3://images.north/a/b/?endpoint=https://store.example:9000/&region=eu-1&lock=compliance&keep=90d"
    location = Location.parse(text)
    assert location == Location(
        text,
        "images.north",
        "a/b/",
        "https://store.example:9000",
        "eu-1",
        LockMode.COMPLIANCE,
        90 * DAY,
    )


def test_the_least() -> None:
    location = Location.parse("s3://images")
    assert (location.bucket, location.prefix, location.endpoint) == ("images", "", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://", "is no name of a bucket"),
        ("s3://Images", "is no name of a bucket"),
        ("s3://images:9000/a", "is no name of a bucket"),
        ("s3://images#a", "is no name of a bucket"),
        ("s3://[", "can't be read"),
        ("s3://images/../other", "can't be part of a prefix"),
        ("s3://images/a%2fb", "can't be part of a prefix"),
        ("s3://images?endpont=https://a", "'endpont' is no option"),
        ("s3://images?region=a&region=b", "given twice"),
        ("s3://images?region", "can't be read"),
        ("s3://images?region=A B", "is no region"),
        ("s3://images?endpoint=store.example", "is no endpoint"),
        ("s3://images?endpoint=ftp://store.example", "is no endpoint"),
        ("s3://images?endpoint=https://store.example/images", "is no endpoint"),
        ("s3://images?endpoint=https://store.example:x", "can't be read"),
        ("s3://images?endpoint=http://store.example", "without TLS"),
        ("s3://images?endpoint=http://192.0.2.1:9000", "without TLS"),
        ("s3://images?endpoint=http://store.example&tls=off", "tls=off is unknown"),
        ("s3://images?lock=compliance", "go together"),
        ("s3://images?keep=90d", "go together"),
        ("s3://images?lock=firm&keep=90d", "neither compliance nor governance"),
        ("s3://images?lock=compliance&keep=90", "keep=90"),
        ("s3://images?lock=compliance&keep=1h", "a day at least"),
    ],
)
def test_what_makes_no_sense(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Location.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAEXAMPLE:hunter2hunter2@images/a",
        "s3://images?endpoint=https://AKIAEXAMPLE:hunter2hunter2@store.example",
    ],
)
def test_keys_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Location.parse(text)
    assert "hunter2" not in caught.value.message + caught.value.hint
    assert "AKIA" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert Location.parse(f"s3://images?endpoint=http://{host}:9000").endpoint


def test_a_network_without_tls_when_it_is_said() -> None:
    location = Location.parse("s3://images?endpoint=http://store.example:9000&tls=no")
    assert location.is_plaintext_allowed
