import ipaddress

import pytest

from imager.errors import ConfigError
from imager.network_settings import NetworkSettings


def test_nothing_is_dhcp_on_every_card() -> None:
    settings = NetworkSettings()
    assert not settings.addresses
    assert not settings.gateways
    assert not settings.name_servers


def test_one_value_or_several() -> None:
    settings = NetworkSettings(
        address=("10.0.0.9/24", "2001:db8::9/64"), gateway="10.0.0.1", dns="10.0.0.53"
    )
    assert [str(address) for address in settings.addresses] == ["10.0.0.9/24", "2001:db8::9/64"]
    assert settings.gateways == (ipaddress.ip_address("10.0.0.1"),)
    assert settings.name_servers == (ipaddress.ip_address("10.0.0.53"),)


def test_a_router_of_the_link_itself_is_a_gateway() -> None:
    assert NetworkSettings(address="2001:db8::9/64", gateway="fe80::1").gateways


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"interface": "eno1; reboot"}, "`interface`"),
        ({"interface": "-i"}, "`interface`"),
        ({"address": "10.0.0.9"}, "with the length of its prefix"),
        ({"address": "10.0.0.900/24"}, "`address` can't be '10.0.0.900/24'"),
        ({"address": "10.0.0.9/33"}, "`address`"),
        ({"gateway": "10.0.0.1"}, "DHCP names the gateway"),
        ({"address": "10.0.0.9/24", "gateway": "10.0.1.1"}, "10.0.1.1 lies in the network of no"),
        ({"address": "10.0.0.9/24", "gateway": "router"}, "`gateway` can't be 'router'"),
        ({"address": "10.0.0.9/24", "gateway": ("10.0.0.1", "10.0.0.2")}, "two for the same"),
        ({"dns": "dns.example"}, "`dns` can't be"),
    ],
)
def test_what_makes_no_sense_is_refused(
    settings: dict[str, str | tuple[str, ...]], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkSettings(**settings)  # type: ignore[arg-type]
    assert said in f"{caught.value.message} {caught.value.hint}"
