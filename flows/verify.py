"""The flow `verify`: checks that a store holds what was written, and lists what is wrong as a table."""

from prefect.artifacts import create_table_artifact

from flows.execution.inert_run import inert_flow, inert_run
from flows.run_name import run_name
from flows.storage_block import storage_root
from storage.errors import UserError
from storage.printed.inert import markdown, one_line

_name = run_name("verify", lambda parameters: f"verify {parameters['storage']}")


@inert_flow("verify", _name)
def verify(storage: str = "alm-data", checksums: bool = False) -> int:
    """Check every dataset, tokenizer and student under a root. Returns the number of them.

    Fails if something is wrong; `alm repair` fixes it.

    Args:
        storage: The storage root: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME.
        checksums: Read every file and compare its checksum, instead of comparing sizes.
    """
    with inert_run():
        return _verify(storage, checksums)


def _verify(storage: str, checksums: bool) -> int:
    from alm_pipeline.scoring.finite import find_damages
    from storage.upkeep.catalog import Catalog

    entries = Catalog.open(storage_root(storage)).entries.values()
    findings = [finding for entry in entries for finding in find_damages(entry, checksums)]
    rows = [{"file": one_line(finding.url), "problem": one_line(finding.problem)} for finding in findings]
    description = f"{len(entries)} datasets and folders in {markdown(storage)}"
    create_table_artifact(rows, key="alm-verify", description=description)
    if findings:
        first = f"{findings[0].url}: {findings[0].problem}"
        command = f"alm repair {storage}{' --checksums' if checksums else ''}"
        raise UserError(f"{storage}: {len(findings)} problems; the first: {first}; `{command}` fixes them")
    return len(entries)
