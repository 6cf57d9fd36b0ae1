"""The phrase tables, by subject; `GRAMMAR` holds them all, checked when this package is imported."""

from openk2.posttrain.synth.phrases import calculator, dates, git, given, notes, shared, table, talk, units
from openk2.posttrain.synth.phrasing import Grammar

GRAMMAR = Grammar(
    {
        name: text
        for page in (shared, calculator, dates, units, notes, table, git, talk, given)
        for name, text in page.TABLES.items()
    }
)
