"""Quantities: which text means which number, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.config.units import parse_quantity
from deepflow.errors import ConfigError

ACCEPTED = [
    # Capacities are binary, with or without the i; lower-case b is bits.
    ("80 GB", "bytes", 80 * 2**30),
    ("80 GiB", "bytes", 80 * 2**30),
    ("80GB", "bytes", 80 * 2**30),
    ("  1.5 MB ", "bytes", 1.5 * 2**20),
    ("32 kB", "bytes", 32 * 2**10),
    ("1 PB", "bytes", 2**50),
    ("8 Gb", "bytes", 2**30),
    ("8 b", "bytes", 1),
    ("4 bytes", "bytes", 4),
    # Bandwidths follow data sheets with /s and the original tool without.
    ("2.0 TB/s", "bytes/s", 2e12),
    ("900 GB/s", "bytes/s", 9e11),
    ("900 GiB/s", "bytes/s", 900 * 2**30),
    ("400 Gb/s", "bytes/s", 50e9),
    ("400 Gbit/s", "bytes/s", 50e9),
    ("400 Gbps", "bytes/s", 50e9),
    ("1986 GB", "bytes/s", 1986 * 2**30),
    ("16 Gb", "bytes/s", 2 * 2**30),
    ("244 TB", "bytes/s", 244 * 2**40),
    ("20 Gb/s", "bit/s", 20e9),
    ("12.48 Gbit/s", "bit/s", 12.48e9),
    ("5 us", "s", 5e-6),
    ("5 µs", "s", 5e-6),
    ("5 \u03bcs", "s", 5e-6),
    ("100 ns", "s", 100e-9),
    ("2 ms", "s", 2e-3),
    ("1.41 GHz", "Hz", 1.41e9),
    ("300 W", "W", 300.0),
    ("0.13 W", "W", 0.13),
    ("0.7 kW", "W", 700.0),
    ("130 mW", "W", 0.13),
    ("800 mV", "V", 0.8),
    ("826 mm2", "mm2", 826.0),
    ("826 mm^2", "mm2", 826.0),
    ("4.5 pJ/bit", "J/bit", 4.5e-12),
    ("130 fJ/bit", "J/bit", 130e-15),
    ("0.6 pW/bit", "W/bit", 0.6e-12),
    ("0.145 um2/bit", "mm2/bit", 1.45e-7),
    ("512 FLOP/cycle", "FLOP/cycle", 512.0),
    # Numbers, and quoted numbers, are in the unit of the key.
    (9e-6, "s", 9e-6),
    ("9e-6", "s", 9e-6),
    (300, "W", 300.0),
    (-1, "bytes/s", -1.0),
    (0.75, "", 0.75),
]


@pytest.mark.parametrize(("value", "unit", "expected"), ACCEPTED)
def test_accepted_text_means_exactly_the_documented_number(value, unit, expected):
    assert parse_quantity(value, unit) == expected


REFUSED = [
    ("80 gb", "bytes"),
    ("80 Gbyte", "bytes"),
    ("80 XB", "bytes"),
    ("80 GB/s", "bytes"),
    ("80 GB GB", "bytes"),
    ("1,986 GB", "bytes/s"),
    ("12.48 GB/s", "bit/s"),
    ("20 Gb", "bit/s"),
    ("5 GB", "s"),
    ("5 m", "s"),
    ("5 ghz", "Hz"),
    ("4.5 pJ", "J/bit"),
    ("fast", "bytes/s"),
    ("GB", "bytes"),
    ("", "bytes"),
    ("nan", "s"),
    ("inf", "s"),
    ("1e999 GB", "bytes"),
    ("0.5", ""),
    (float("nan"), "s"),
    (float("inf"), ""),
    (10**400, "bytes"),
    (True, "s"),
    (None, "s"),
    ([1], "s"),
    ({"a": 1}, "s"),
]


@pytest.mark.parametrize(("value", "unit"), REFUSED)
def test_anything_else_is_refused_with_file_and_key(value, unit):
    with pytest.raises(ConfigError) as caught:
        parse_quantity(value, unit, file="hw.yaml", key="tech_param.X.y")
    message = str(caught.value)
    assert message.startswith("hw.yaml: tech_param.X.y")
    assert "allowed:" in message
    assert "\n" not in message


@given(
    number=st.decimals(min_value="1e-6", max_value="1e9", places=6),
    unit=st.sampled_from([("us", "s", -6), ("GHz", "Hz", 9), ("GB/s", "bytes/s", 9)]),
)
def test_decimal_units_agree_with_scientific_notation_to_the_last_bit(number, unit):
    written, si, exponent = unit
    assert parse_quantity(f"{number:f} {written}", si) == float(f"{number:f}e{exponent}")


@given(st.text(max_size=20), st.sampled_from(["bytes", "bytes/s", "s", "J/bit", ""]))
def test_arbitrary_text_gives_a_number_or_a_config_error(text, unit):
    try:
        value = parse_quantity(text, unit)
    except ConfigError:
        return
    assert isinstance(value, float)
