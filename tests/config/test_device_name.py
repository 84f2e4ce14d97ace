"""The default name of a device."""

from __future__ import annotations

import pytest

from edged.config.device_name import device_name
from edged.config.keys import check_file


@pytest.mark.parametrize(
    ("host", "machine", "name"),
    [
        ("raspberrypi", "0123456789abcdef", "raspberrypi-0123"),
        ("My Pi.local", "abcdef", "my-pi-local-abcd"),
        ("-x-", "abcd", "x-abcd"),
        ("ÄÖ", "abcd", "device-abcd"),
        ("a" * 70, "abcd", "a" * 58 + "-abcd"),
    ],
)
def test_the_default_device_is_the_host_name_made_to_fit_and_four_digits(host: str, machine: str, name: str) -> None:
    assert name == device_name(host, machine)
    assert {"identity": {"device": name}} == check_file({"identity": {"device": name}})


def test_without_a_machine_id_the_four_digits_come_from_the_host_name() -> None:
    name = device_name("pi", "")
    assert name == device_name("pi", "")
    assert name != device_name("pj", "").replace("pj", "pi")
