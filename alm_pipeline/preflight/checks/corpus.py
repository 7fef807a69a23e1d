"""Checks of the corpus: that it can be read, what its first rows become, and what will be held out of it."""

from collections.abc import Sequence

from alm_pipeline.config import GeneratedSource
from alm_pipeline.corpus.examples import Example
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.filtering.minhash import algorithm
from alm_pipeline.filtering.signatures import require_questions
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.preflight.context import Context
from alm_pipeline.preflight.corpus_sample import CorpusSample
from alm_pipeline.tokenization.chat.template import TemplateRefused
from alm_pipeline.tokenization.encoder import ByteEncoder
from storage.errors import UserError
from storage.printed.counts import counts_in_words

FEW_HELD_OUT = 20
_SHOWN_FILES = 3
_MOST_RENDERED = 500
"""conversations, where the template refuses one after the other"""
_FIRST = 32
"""texts: all are encoded only where these are no more than a token each"""


def student_context(context: Context) -> None:
    """The student's context holds a text."""
    _ = context.source_config
    length, tokenizer = context.source.context_length, context.student_tokenizer
    if length is not None and tokenizer is not None:  # of one that is trained it is known once it is there
        with context.noting("student.model"):
            TokenLimit(length, ByteEncoder(tokenizer))


def corpus_is_readable(context: Context) -> None:
    """The source can be listed, and the first rows of its files can be read."""
    sample = context.sample
    for error in sample.problems[:_SHOWN_FILES]:
        context.add_error(error, _field_of(error, context), names_field=False)
    if (more := len(sample.problems) - _SHOWN_FILES) > 0:
        context.add(
            "corpus.source",
            f"{more} other files of the {sample.files_read} that were looked into can't be read either",
            "fix these first, and run `alm check` again",
            value=_files(sample),
        )


def _field_of(error: UserError, context: Context) -> str:
    """Return the field that names a column that a file does not have; for any other error, the source."""
    corpus, sentence = context.config.texts, str(error)
    missing = sentence.partition(" has no column ")[2].partition(";")[0]
    if not missing:
        return "corpus.source"
    if corpus.id and repr(corpus.id) in missing:
        return "corpus.id"
    return "corpus.messages" if corpus.messages else "corpus.text"


def _files(sample: CorpusSample) -> str:
    return f"{sample.files_read} of {sample.files} files" if sample.files else ""


def corpus_has_examples(context: Context) -> None:
    """At least one row becomes an example."""
    sample = context.sample
    if sample.examples or sample.problems:
        return
    reasons = counts_in_words(sample.dropped, "nothing was read")
    if sample.is_whole:
        problem = f"the corpus has no examples ({reasons})"
    else:
        problem = f"none of the first {sample.rows:,} rows becomes an example ({reasons})"
    fix = "check corpus.source, corpus.text, corpus.messages and corpus.sample"
    field = "corpus.messages" if context.config.texts.messages else "corpus.text"
    context.add(field, problem, fix, severity="error" if sample.is_whole else "warning")


def what_is_left_out(context: Context) -> None:
    """The evaluation sets that documents are compared with can be read, and the library for it is there."""
    corpus = context.config.texts
    if corpus.deduplicate and corpus.deduplicate.near:
        with context.noting("corpus.deduplicate"):
            algorithm()
    if corpus.decontaminate:
        try:
            require_questions(corpus.decontaminate)
        except UserError as error:  # which may name the fields of a corpus, such as its source
            context.add_error(error, "corpus.decontaminate.questions", names_field=False)


def held_out(context: Context) -> None:
    """Something is held out, and enough of it to measure a student with."""
    share = context.config.texts.held_out
    if not share:
        context.add(
            "corpus.held_out",
            "no example would be held out, so nothing can be evaluated",
            "set it to a share of the documents, such as 0.05",
        )
        return
    if "prepare" not in context.phases:
        return
    sample = context.sample
    if not sample.examples or sample.problems:
        return
    if sample.is_whole:
        _check_whole(context, sample)
    elif (expected := _expected_examples(context, sample) * share) < FEW_HELD_OUT:
        context.add(
            "corpus.held_out",
            f"about {expected:.0f} examples would be held out, too few to tell students apart",
            "raise it, or use a larger corpus",
            severity="warning",
        )


def _check_whole(context: Context, sample: CorpusSample) -> None:
    held, trained = sample.in_split("held_out"), sample.in_split("train")
    if not held:
        context.add(
            "corpus.held_out",
            f"none of the {len(sample.examples):,} examples of the corpus is held out, so nothing can be evaluated",
            "raise it, or use a larger corpus",
        )
    elif not trained:
        context.add(
            "corpus.held_out",
            f"all {len(sample.examples):,} examples of the corpus are held out, so nothing is left to train on",
            "lower it, or use a larger corpus",
        )
    elif len(held) < FEW_HELD_OUT:
        size = sum(example.text_bytes for example in held)
        context.add(
            "corpus.held_out",
            f"only {len(held)} of {len(sample.examples):,} examples are held out ({size:,} bytes of text), too few to "
            "tell students apart",
            "raise it, or use a larger corpus",
            severity="warning",
        )


def _expected_examples(context: Context, sample: CorpusSample) -> float:
    """Return how many examples the corpus will have: those of the sample, times what was not read; a high guess."""
    corpus = context.config.texts
    most = float("inf") if corpus.max_examples is None else corpus.max_examples
    if isinstance(corpus.source, GeneratedSource):
        most = min(most, corpus.source.size)
    if not sample.bytes_of_files or not sample.bytes_read:
        return most
    text = sum(example.text_bytes for example in sample.examples)
    # a file that is read in part may hold as much text as it has bytes, and a compressed one more
    per_byte = len(sample.examples) / max(1, min(text, sample.bytes_read))
    return min(most, sample.bytes_of_files * per_byte * corpus.sample)


def texts_have_predictions(context: Context) -> None:
    """Texts have more than one token: the first has no prediction, unless the tokenizer puts one before it."""
    texts = [example.text for example in context.sample.examples if example.text is not None]
    if not texts:
        return
    for side, tokenizer in (("teacher", context.teacher_tokenizer), ("student", context.student_tokenizer)):
        if tokenizer is None or tokenizer.frame[0] or _longest(tokenizer, texts[:_FIRST]) > 1:
            continue
        if _longest(tokenizer, texts) > 1:
            continue
        is_all = context.sample.is_whole
        which = "all" if is_all else "the first"
        context.add(
            "corpus.text",
            f"{which} {len(texts)} texts are a single token of the {side}'s tokenizer each, which has no prediction",
            "use longer texts",
            severity="error" if is_all else "warning",
        )


def _longest(tokenizer: LoadedTokenizer, texts: Sequence[str]) -> int:
    encoded = tokenizer.encoding_backend.encode_batch(list(texts), add_special_tokens=False)
    return max(len(text.ids) for text in encoded)


def templates_show_conversations(context: Context) -> None:
    """Both sides' chat templates take the first conversations."""
    chats = [example for example in context.sample.examples if example.messages is not None]
    if not chats:
        return
    _check_assistant(context, chats)
    student = context.student_tokenizer or context.templated_source
    for field, tokenizer in zip(context.template_fields, (context.teacher_tokenizer, student), strict=True):
        try:
            _check_template(context, field, tokenizer, chats)
        except UserError as error:
            context.add_error(error, field, names_field=False)


def _check_template(context: Context, field: str, tokenizer: LoadedTokenizer, chats: Sequence[Example]) -> None:
    """Add a finding if the template refuses all of the first conversations. Raises UserError if there is none."""
    refusals = []
    for chat in chats[:_MOST_RENDERED]:
        try:
            tokenizer.template.render(chat.messages or [], chat.arguments)
            return
        except TemplateRefused as error:
            refusals.append(error)
    is_all = context.sample.is_whole and len(refusals) == len(chats)
    context.add(
        field,
        f"{refusals[0]}; it refuses {'all' if is_all else 'the first'} {len(refusals)} conversations",
        "fix the template, or use a corpus whose roles it takes",
        severity="error" if is_all else "warning",
        value=tokenizer.name,
    )


def _check_assistant(context: Context, chats: Sequence[Example]) -> None:
    marks = context.corpus.marks
    if not (context.config.objective.assistant_only or marks) or "train" not in context.phases:
        return
    roles = {str(message["role"]) for chat in chats for message in chat.messages or []}
    if "assistant" not in roles:
        is_all = context.sample.is_whole and len(chats) == len(context.sample.examples)
        context.add(
            "corpus.marks" if marks else "objective.assistant_only",
            f"{'no' if is_all else f'none of the first {len(chats)}'} conversation has a message of the role assistant "
            f"(the roles are {', '.join(sorted(roles))}), so there is nothing to learn from",
            f"set it to {'an empty name' if marks else 'false'}, or use a corpus with answers",
            severity="error" if is_all else "warning",
        )
