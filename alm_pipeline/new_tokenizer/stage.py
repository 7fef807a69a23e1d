"""The stage that makes the student's tokenizer: trained, of bytes, or with the source's special tokens."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from alm_pipeline.config import CorpusConfig, TrainedTokenizer
from alm_pipeline.conversations.sections import joined_text
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.sources import OpenSource, open_source
from alm_pipeline.corpus.stage import corpus_identity
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.new_tokenizer.special_tokens import with_special_tokens
from alm_pipeline.new_tokenizer.trained import train_tokenizer
from alm_pipeline.runtime.progress import track
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast

STAGE_VERSION = 1


def tokenizer_folder(
    corpus: CorpusConfig, setting: TrainedTokenizer | str, source: LoadedTokenizer, root: str
) -> StoredFolder:
    """Return the folder of the tokenizer trained on this corpus, or of bytes. It need not be written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "source_tokenizer": source.identity,
        "saved_source_tokenizer": source.saved_identity,
    }
    if isinstance(setting, str):
        return StoredFolder(root, "tokenizers", f"{source.label}-{setting}", {**identity, "setting": setting})
    trained = {"corpus": corpus_identity(_whole(corpus), root), "setting": setting.model_dump(mode="json")}
    return StoredFolder(root, "tokenizers", f"bpe-{setting.vocab_size}", identity | trained)


def exchanged_folder(tokenizer: LoadedTokenizer, source: LoadedTokenizer, root: str) -> StoredFolder:
    """Return the folder of the tokenizer with the source's special tokens. It need not be written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "tokenizer": tokenizer.identity,
        "saved_tokenizer": tokenizer.saved_identity,
        "source_tokenizer": source.identity,
        "saved_source_tokenizer": source.saved_identity,
    }
    return StoredFolder(root, "tokenizers", f"{tokenizer.label}-as-{source.label}", identity)


def write_exchanged(folder: StoredFolder, tokenizer: LoadedTokenizer, source: LoadedTokenizer) -> FolderManifest:
    """Write the tokenizer with the source's special tokens, unless it is written."""

    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        made = with_special_tokens(source.fast, tokenizer.fast)
        return _finish(target, lease, made, tokenizer, source)

    return make_folder(folder, make)


def _whole(corpus: CorpusConfig) -> CorpusConfig:
    """Return the corpus without sampling: training a tokenizer is faster than scoring, so it can use more text."""
    return corpus.model_copy(update={"sample": 1.0, "max_examples": None})


def write_tokenizer(
    folder: StoredFolder, corpus: CorpusConfig, setting: TrainedTokenizer | str, source: LoadedTokenizer
) -> FolderManifest:
    """Train the tokenizer on the training split, or make it of bytes, unless it is written.

    Raises UserError if the corpus's source changes meanwhile.
    """

    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        if isinstance(setting, str):
            tokenizer = byte_level_tokenizer(source.fast)
        else:
            read = open_source(corpus.source)
            read.require_identity(folder.identity["corpus"]["source"])
            texts = _training_texts(corpus, setting.train_bytes, read)
            tokenizer = train_tokenizer(texts, setting.vocab_size, source.fast)
            read.check(final=True)
        return _finish(target, lease, tokenizer, source)

    return make_folder(folder, make)


def _finish(
    folder: StoredFolder, lease: Lease, made: "PreTrainedTokenizerFast", *sources: LoadedTokenizer
) -> FolderManifest:
    made.save_pretrained(folder.path)
    for source in sources:
        source.check_unchanged()
    return folder.finish({"tokens": len(made)}, lease, content=LoadedTokenizer(str(folder.path)).identity)


def _training_texts(corpus: CorpusConfig, train_bytes: int, source: OpenSource) -> Iterator[str]:
    read = 0
    with track("train tokenizer", None, "B") as advance:
        for example in iter_examples(_whole(corpus), Counter(), source):
            if read >= train_bytes:
                return
            if example.split == "train":
                text = example.text if example.text is not None else joined_text(example.messages or [])
                read += len(text.encode())
                advance(len(text.encode()))
                yield text
