"""The page of datasets: every column with its type and meaning, from the Arrow schemas of `storage.schemas`."""


def page() -> str:
    return "# Datasets\n"
