"""Units as people write them: `km/h`, `kg m^2/s^2`, `metres per second squared`, `J kg^-1 K^-1`, `$`, `%`. Serves `quantities`.

An explicit table: what is a unit can be read here, and no answer is ever evaluated. Factors are exact.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

# NAME… = FACTOR UNIT. A base unit has no definition. Those of the first table take SI prefixes: km, kilometre.
_WITH_PREFIXES = """
m metre meter
g gram
s second sec
A ampere amp
K kelvin
mol mole
bit
B byte = 8 bit
Hz hertz = 1 /s
N newton = 1000 g m/s^2
Pa pascal = 1 N/m^2
J joule = 1 N m
W watt = 1 J/s
C coulomb = 1 A s
V volt = 1 J/C
Ω ohm = 1 V/A
F farad = 1 C/V
T tesla = 1 V s/m^2
Wb weber = 1 V s
H henry = 1 V s/A
L l litre liter = 0.001 m^3
M molar = 1 mol/L
bar = 100000 Pa
eV electronvolt = 1.602176634e-19 J
cal calorie = 4.184 J
Wh = 3600 J
"""
_WITHOUT_PREFIXES = """
min minute = 60 s
h hr hour = 60 min
d day = 24 h
week wk = 7 day
month mo
year yr = 12 month
in inch = 0.0254 m
ft foot feet = 12 in
yd yard = 3 ft
mi mile = 5280 ft
mph = 1 mi/h
cc = 1 cm^3
acre = 4840 yd^2
ha hectare = 10000 m^2
gal gallon = 231 in^3
qt quart = 0.25 gal
pt pint = 0.5 qt
cup = 0.5 pt
t tonne = 1000000 g
lb pound = 453.59237 g
oz ounce = 0.0625 lb
atm atmosphere = 101325 Pa
°C celsius = 1 K + 273.15
°F fahrenheit = 5/9 K + 459.67
° deg degree
rad radian = 57.29577951308232 °
% percent = 0.01
ppm = 0.000001
dozen = 12
hundred = 100
thousand = 1000
million = 1000000
billion = 1000000000
trillion = 1000000000000
$ USD dollar
¢ cent = 0.01 $
€ EUR euro
£ GBP
¥ JPY yen
₹ INR rupee
"""
_PREFIXES = {
    **{"T": 12, "tera": 12, "G": 9, "giga": 9, "M": 6, "mega": 6, "k": 3, "kilo": 3, "h": 2, "hecto": 2, "d": -1, "deci": -1},
    **{"c": -2, "centi": -2, "m": -3, "milli": -3, "μ": -6, "u": -6, "micro": -6, "n": -9, "nano": -9, "p": -12, "pico": -12},
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


class UnknownUnitError(ValueError):
    """Nothing that is written like this is a unit."""


@dataclass(frozen=True)
class Unit:
    """As many of the base units as `factor`, each to its power in `powers` (none of them 0). `offset` is what this unit shows
    at the zero of the base unit, turned round: 273.15 for °C."""

    factor: Fraction = Fraction(1)
    powers: Mapping[str, int] = field(default_factory=dict)
    offset: Fraction = Fraction(0)


def read(text: str) -> Unit:
    """What the text says; of an empty one the unit of bare numbers. `/` and `per` are about the one unit, or bracket, behind
    them. Raises UnknownUnitError."""
    return _read(text, _table())


_PART = re.compile(
    r"\s+|[*/()]|(?P<name>°[CFcf]?|[%$¢€£¥₹]|[^\W\d_]+)(?:\^?(?P<power>[-+]?[0-9]{1,2})(?![0-9]))?",
)


def _read(text: str, table: Mapping[str, Unit]) -> Unit:
    factors: list[tuple[Unit, int]] = []
    parts = list(_PART.finditer(text))
    if "".join(part[0] for part in parts) != text:
        raise UnknownUnitError(text)
    below, power = 1, 1  # −1 behind a slash; 2 behind `square`
    brackets = [1]  # of those we are in, −1 for one that is below
    for part in parts:
        match part[0].strip():
            case "" | "*":
                pass
            case "/" | "per":
                below = -1
            case "(":
                brackets.append(brackets[-1] * below)
                below = 1
            case ")" if len(brackets) > 1:
                brackets.pop()
            case ")":
                raise UnknownUnitError(text)
            case "square" | "sq" | "cubic" | "cu" as word:
                power = _POWERS[word]
            case "squared" | "cubed" as word if factors:
                unit, earlier = factors.pop()
                factors.append((unit, earlier * _POWERS[word]))
            case _:
                factors.append((_named(part["name"], table), int(part["power"] or power) * below * brackets[-1]))
                below = power = 1
    if [power for _, power in factors] == [1]:
        return factors[0][0]
    total: Counter[str] = Counter()
    factor = Fraction(1)
    for unit, power in factors:
        factor *= unit.factor**power
        for base, n in unit.powers.items():
            total[base] += n * power
    return Unit(factor, {base: n for base, n in total.items() if n})


def _named(name: str, table: Mapping[str, Unit]) -> Unit:
    """By its symbol or word, in the plural too, and in other case where that leaves one meaning: KG, but not MW as mw."""
    spellings = [name, name.removesuffix("s"), name.removesuffix("es")]
    for spelling in [*spellings, *(spelling.casefold() for spelling in spellings)]:
        if spelling in table:
            return table[spelling]
    raise UnknownUnitError(name)


@functools.cache
def _table() -> dict[str, Unit]:
    known: dict[str, Unit] = {}
    for line in _WITH_PREFIXES.split("\n"):
        for name, unit in _defined(line, known).items():
            known[name] = unit
            for prefix, power in _PREFIXES.items():
                known[prefix + name] = Unit(unit.factor * Fraction(10) ** power, unit.powers)
    for line in _WITHOUT_PREFIXES.split("\n"):
        known |= _defined(line, known)
    folded: dict[str, set[Fraction]] = defaultdict(set)
    for name, unit in known.items():
        folded[name.casefold()].add(unit.factor)
    lone = {name.casefold(): unit for name, unit in known.items() if len(folded[name.casefold()]) == 1}
    return lone | known


def _defined(line: str, known: Mapping[str, Unit]) -> dict[str, Unit]:
    names, _, definition = line.partition(" = ")
    scaled, _, offset = definition.partition(" + ")
    factor, _, unit = scaled.partition(" ")
    if not definition:
        return {name: Unit(powers={names.split()[0]: 1}) for name in names.split()}
    whole = _read(unit, known)
    return {name: Unit(Fraction(factor) * whole.factor, whole.powers, Fraction(offset or 0)) for name in names.split()}
