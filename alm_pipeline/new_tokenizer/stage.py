"""The stage that makes the student's tokenizer: trained, of bytes, or with the source's special tokens."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
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
    corpora: Sequence[CorpusConfig], setting: TrainedTokenizer | str, source: LoadedTokenizer, root: str
) -> StoredFolder:
    """Return the folder of the tokenizer trained on these corpora, or of bytes. It need not be written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "source_tokenizer": source.identity,
        "saved_source_tokenizer": source.saved_identity,
    }
    if isinstance(setting, str):
        return StoredFolder(root, "tokenizers", f"{source.label}-{setting}", {**identity, "setting": setting})
    identities = [corpus_identity(_whole(corpus), root) for corpus in corpora]
    trained = {"corpus": identities[0]} if len(identities) == 1 else {"corpora": identities}
    identity |= {**trained, "setting": setting.model_dump(mode="json")}
    return StoredFolder(root, "tokenizers", f"bpe-{setting.vocab_size}", identity)


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
    folder: StoredFolder, corpora: Sequence[CorpusConfig], setting: TrainedTokenizer | str, source: LoadedTokenizer
) -> FolderManifest:
    """Train the tokenizer on the training split, or make it of bytes, unless it is written.

    Of several corpora, each has an equal share of `train_bytes`. Raises UserError if a corpus's source changes
    meanwhile.
    """

    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        if isinstance(setting, str):
            tokenizer = byte_level_tokenizer(source.fast)
        else:
            named = folder.identity.get("corpora") or [folder.identity["corpus"]]
            opened = [open_source(corpus.source) for corpus in corpora]
            for read, identity in zip(opened, named, strict=True):
                read.require_identity(identity["source"])
            share = setting.train_bytes // len(corpora)
            texts = (_training_texts(corpus, share, read) for corpus, read in zip(corpora, opened, strict=True))
            tokenizer = train_tokenizer(chain.from_iterable(texts), setting.vocab_size, source.fast)
            for read in opened:
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
