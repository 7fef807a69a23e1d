"""A storage root whose credentials are in a Prefect block: `block:NAME`, or `block:NAME/prefix` below its base path.

The block is a `RemoteFileSystem`. Its settings go to fsspec in every process that works on the root, but into no
parameter and no manifest.
"""

from storage.errors import UserError
from storage.urls import configure, join_url

_PREFIX = "block:"


def is_block(storage: str) -> bool:
    """Whether only a Prefect server knows where this storage is."""
    return storage.startswith(_PREFIX)


def storage_root(storage: str) -> str:
    """Return the root's URL: `storage` itself, or a block's base path after its settings are put to use.

    Raises UserError if the block does not exist.
    """
    if not is_block(storage):
        return storage
    from prefect.filesystems import RemoteFileSystem  # takes seconds to import

    name, _, prefix = storage.removeprefix(_PREFIX).partition("/")
    try:
        block = RemoteFileSystem.load(name)
    except ValueError as error:
        raise UserError(
            f"{storage}: there is no block remote-file-system/{name}: create it in Prefect's UI, or in Python with "
            f"RemoteFileSystem(basepath=…, settings=…).save({name!r})"
        ) from error
    assert isinstance(block, RemoteFileSystem)
    configure(block.basepath, block.settings)
    return join_url(block.basepath, prefix) if prefix else block.basepath.rstrip("/")
