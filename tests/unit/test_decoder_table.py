"""The README says about decoder families what the tests run, no more and no less."""

from __future__ import annotations

import pytest

from fastserve.errors import UnsupportedModel
from fastserve.export.guards import check_config
from tests.decoder_table import README, table, table_in
from tests.synthetic.decoder_families import FAMILIES, REFUSED


def test_the_readmes_table_is_the_one_the_tests_make() -> None:
    assert table_in(README.read_text(encoding="utf-8")) == table(), "run: python -m tests.decoder_table"


@pytest.mark.parametrize("title", REFUSED)
def test_a_family_is_refused_for_the_reason_in_the_table(title: str) -> None:
    reason, make = REFUSED[title]
    with pytest.raises(UnsupportedModel, match=reason):
        check_config(make())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_configuration_passes_the_guards(name: str) -> None:
    check_config(FAMILIES[name].config())
