"""Unit conversion by exact factors (international yard and pound, US liquid gallon).

Units are named by their long English names, singular or plural, or as people
usually write them: a caller may repeat what the user said.
"""

from __future__ import annotations

from fractions import Fraction

from openk2.environments.arithmetic import exact, format_number
from openk2.protocols import ToolError

MAX_MAGNITUDE = 10**12

# Factor to the first unit of the line: one of the named unit is so many of the base unit.
_FACTORS: dict[str, dict[str, str]] = {
    "length": {
        "meters": "1",
        "kilometers": "1000",
        "centimeters": "0.01",
        "millimeters": "0.001",
        "miles": "1609.344",
        "yards": "0.9144",
        "feet": "0.3048",
        "inches": "0.0254",
    },
    "mass": {
        "kilograms": "1",
        "grams": "0.001",
        "milligrams": "0.000001",
        "tonnes": "1000",
        "pounds": "0.45359237",
        "ounces": "0.028349523125",
    },
    "volume": {
        "liters": "1",
        "milliliters": "0.001",
        "gallons": "3.785411784",
        "quarts": "0.946352946",
        "pints": "0.473176473",
        "cups": "0.2365882365",
    },
    "time": {
        "seconds": "1",
        "minutes": "60",
        "hours": "3600",
        "days": "86400",
        "weeks": "604800",
    },
    "speed": {
        "meters per second": "1",
        "kilometers per hour": "1/3.6",
        "miles per hour": "0.44704",
        "knots": "1852/3600",
    },
}
# Kelvin = value * factor + offset.
_TEMPERATURES: dict[str, tuple[Fraction, Fraction]] = {
    "kelvin": (Fraction(1), Fraction(0)),
    "celsius": (Fraction(1), Fraction("273.15")),
    "fahrenheit": (Fraction(5, 9), Fraction("459.67") * Fraction(5, 9)),
}
_IRREGULAR = {"foot": "feet", "inch": "inches"}
# Other spellings, in lower case.
_SPELLINGS = {
    "meters": "m metre metres",
    "kilometers": "km kms kilometre kilometres",
    "centimeters": "cm centimetre centimetres",
    "millimeters": "mm millimetre millimetres",
    "miles": "mi",
    "yards": "yd yds",
    "feet": "ft",
    "inches": "in",
    "kilograms": "kg kgs kilo kilos",
    "grams": "g",
    "milligrams": "mg",
    "tonnes": "t ton tons",
    "pounds": "lb lbs",
    "ounces": "oz",
    "liters": "l litre litres",
    "milliliters": "ml millilitre millilitres",
    "gallons": "gal",
    "quarts": "qt",
    "pints": "pt",
    "seconds": "s sec secs",
    "minutes": "min mins",
    "hours": "h hr hrs",
    "meters per second": "m/s",
    "kilometers per hour": "km/h kph kmh",
    "miles per hour": "mph",
    "kelvin": "k",
    "celsius": "c",
    "fahrenheit": "f",
}


def _factor(text: str) -> Fraction:
    numerator, _, denominator = text.partition("/")
    return Fraction(numerator) / Fraction(denominator or 1)


_LINEAR: dict[str, tuple[str, Fraction]] = {
    unit: (kind, _factor(text)) for kind, units in _FACTORS.items() for unit, text in units.items()
}
UNITS: tuple[str, ...] = (*_LINEAR, *_TEMPERATURES)
_NAMED: dict[str, str] = {spelling: unit for unit, line in _SPELLINGS.items() for spelling in line.split()}


def canonical_unit(name: str) -> str:
    """The plural lower-case spelling of a unit, or `ToolError`."""
    text = " ".join(name.casefold().split()).removeprefix("degrees ")
    if text in _NAMED:
        return _NAMED[text]
    first, _, rest = text.partition(" ")
    plural = _IRREGULAR.get(first, first if first.endswith("s") else first + "s")
    for spelling in (text, f"{plural} {rest}".strip()):
        if spelling in _LINEAR or spelling in _TEMPERATURES:
            return spelling
    raise ToolError(f"unknown unit: {name[:30]!r}")


def convert_units(value: int | float, from_unit: str, to_unit: str) -> str:
    """`value` in the other unit, rounded to 2 decimals, trailing zeros dropped."""
    if not abs(value) <= MAX_MAGNITUDE:  # also refuses NaN
        raise ToolError("value is too large")
    source, target = canonical_unit(from_unit), canonical_unit(to_unit)
    amount = exact(value)
    if source in _TEMPERATURES and target in _TEMPERATURES:
        factor, offset = _TEMPERATURES[source]
        kelvin = amount * factor + offset
        factor, offset = _TEMPERATURES[target]
        return format_number((kelvin - offset) / factor, 2)
    kind, factor = _LINEAR.get(source, ("temperature", Fraction(1)))
    other, divisor = _LINEAR.get(target, ("temperature", Fraction(1)))
    if kind != other:
        raise ToolError(f"cannot convert {source} to {target}")
    return format_number(amount * factor / divisor, 2)
