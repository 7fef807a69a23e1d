"""What of a corpus is left out: documents that repeat others, and those that contain questions of evaluations."""

from pydantic import Field, model_validator

from alm_pipeline.config.frozen import Frozen


class DeduplicationConfig(Frozen):
    """Documents that repeat an earlier one are left out, and counted."""

    exact: bool = Field(
        True,
        description="Whether to leave out documents with the same text as an earlier one, apart from white space at "
        "both ends.",
    )
    near: bool = Field(
        True,
        description="Whether to leave out documents that are nearly the same as an earlier one, found by MinHash. "
        "Needs `pip install 'alm-pipeline[dedup]'`.",
    )
    similarity: float = Field(
        0.8,
        ge=0.5,
        le=0.95,
        description="How similar documents are that count as nearly the same: the share of their runs of `words` words "
        "that both have (Jaccard). Of documents with just this similarity, about half are found; below it, few are "
        "taken for the same.",
    )
    words: int = Field(5, ge=1, le=20, description="How many words in a row are compared.")
    across: bool = Field(
        True,
        description="In a mixture, whether documents also count as repeated that an earlier source of the list has. "
        "New sources are then added at the end, so that none of the others changes.",
    )

    @model_validator(mode="after")
    def _finds_something(self) -> "DeduplicationConfig":
        if not (self.exact or self.near):
            raise ValueError("exact and near are both false, so nothing is left out; leave deduplicate out instead")
        return self


class DecontaminationConfig(Frozen):
    """Documents that contain a question of an evaluation set are left out, and counted."""

    questions: tuple[str, ...] = Field(
        min_length=1,
        description="Local paths or fsspec URLs of the evaluation sets: Parquet, Arrow, JSON, CSV or text files.",
    )
    text: str = Field(
        "{question} {answer}",
        description="The column of the evaluation sets that holds a question, or a template of columns.",
    )
    words: int = Field(
        13,
        ge=3,
        le=50,
        description="How many words in a row a document has to share with a question, whatever their case and "
        "punctuation. A shorter question has to be there as a whole.",
    )
