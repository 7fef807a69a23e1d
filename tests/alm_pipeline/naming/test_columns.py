"""Every column of every kind of dataset has a description, since the documentation's tables are generated from them."""

import pytest

from alm_pipeline.naming.columns import COLUMN_DESCRIPTIONS
from storage.schemas import OPTIONAL, SCHEMAS, Kind


def test_every_kind_has_a_schema() -> None:
    assert set(SCHEMAS) == set(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_every_column_has_a_description(kind: Kind) -> None:
    columns = [*SCHEMAS[kind], *OPTIONAL.get(kind, ())]
    assert list(COLUMN_DESCRIPTIONS[kind]) == [column.name for column in columns]
    assert all(description.meaning.endswith(".") for description in COLUMN_DESCRIPTIONS[kind].values())


@pytest.mark.parametrize("kind", Kind)
def test_descriptions_are_not_written_to_the_files(kind: Kind) -> None:
    columns = [*SCHEMAS[kind], *OPTIONAL.get(kind, ())]
    assert SCHEMAS[kind].metadata is None
    assert [column.name for column in columns if column.metadata] == []
