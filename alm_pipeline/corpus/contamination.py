"""Which questions of an evaluation set a corpus contains, by n-grams of words.

A question is contaminated if the corpus has one of its n-grams: n words in a row, without case and punctuation
(Brown et al. 2020, arXiv 2005.14165, appendix C, n 13). A question of fewer words counts as one n-gram.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alm_pipeline.config import CorpusConfig
from alm_pipeline.conversations.sections import joined_text
from alm_pipeline.corpus.examples import Example, iter_examples
from alm_pipeline.corpus.files.errors import BY_TEXT_OPTION, columns_set_by
from alm_pipeline.runtime.progress import track

_WORD = re.compile(r"\w+")
_LONGEST_QUESTION = 2**20
Ngram = tuple[str, ...]


@dataclass(frozen=True)
class Contamination:
    """What of some questions a corpus contains."""

    questions: int
    shares: Mapping[str, float]
    """of a contaminated question's n-grams, by its id: those that the corpus has"""
    where: Mapping[str, str]
    """the id of the first example that has one of its n-grams"""
    examples: int
    """that were looked at"""
    dropped: Mapping[str, int]
    """documents of the corpus that became no example, by reason"""

    @property
    def share(self) -> float:
        """The share of questions that are contaminated."""
        return len(self.shares) / self.questions if self.questions else 0.0


def words(text: str) -> list[str]:
    """Return the words of a text, without case; a script without spaces is one long word per run of letters."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def ngrams(text: str, n: int) -> Iterator[Ngram]:
    """Yield the n-grams of a text; of a shorter one the only one that it has, and of none nothing."""
    found = words(text)
    if 0 < len(found) < n:
        yield tuple(found)
    yield from (tuple(found[k : k + n]) for k in range(len(found) - n + 1))


def question_texts(questions: CorpusConfig, dropped: Counter[str]) -> dict[str, str]:
    """Return the texts of questions by id, uncut; counts rows without one in `dropped`."""
    whole = _as_they_are(questions).model_copy(update={"max_bytes": _LONGEST_QUESTION})
    with columns_set_by(BY_TEXT_OPTION):
        return {example.id: _text(example) for example in iter_examples(whole, dropped)}


def _as_they_are(corpus: CorpusConfig) -> CorpusConfig:
    """Return the corpus in one form of characters, whatever the models are."""
    return corpus.model_copy(update={"normalize": ("nfc",)}) if corpus.normalize == "auto" else corpus


class QuestionIndex:
    """The n-grams of questions, to be found in other texts."""

    def __init__(self, questions: Mapping[str, str], n: int) -> None:
        """`questions` are texts by id."""
        self.grams = {id_: set(ngrams(text, n)) for id_, text in questions.items()}
        self.owners: defaultdict[Ngram, list[str]] = defaultdict(list)
        for id_, grams in self.grams.items():
            for gram in grams:
                self.owners[gram].append(id_)
        self._lengths = sorted({len(gram) for gram in self.owners})

    def found_in(self, text: str) -> Iterator[Ngram]:
        """Yield the n-grams of questions that a text has, the shorter ones first."""
        return _in_question(text, self._lengths, self.owners)

    def first_in(self, text: str) -> str | None:
        """Return the id of a question of which the text has an n-gram, the same one every time; None if it has none."""
        gram = next(self.found_in(text), None)
        return None if gram is None else self.owners[gram][0]


def find_contamination(corpora: Sequence[CorpusConfig], questions: Mapping[str, str], n: int = 13) -> Contamination:
    """Look for questions (texts by id) in a corpus or the sources of a mixture, each of which is read once.

    Examples of a mixture are called by their source's name, too. Raises UserError as `iter_examples` does.
    """
    index = QuestionIndex(questions, n)
    of_question, found, where = index.grams, defaultdict[str, set[Ngram]](set), dict[str, str]()
    dropped, examples = Counter[str](), 0
    total = sum(corpus.max_examples or 0 for corpus in corpora)
    with track("look for questions", total, "examples") as advance:
        for corpus, example in _examples(corpora, dropped):
            examples += 1
            for gram in index.found_in(_text(example)):
                for id_ in index.owners[gram]:
                    found[id_].add(gram)
                    where.setdefault(id_, f"{corpus.name}: {example.id}" if len(corpora) > 1 else example.id)
            advance(1)
    shares = {id_: len(found[id_]) / len(of_question[id_]) for id_ in of_question if id_ in found}
    return Contamination(len(questions), shares, where, examples, dict(dropped))


def _examples(corpora: Sequence[CorpusConfig], dropped: Counter[str]) -> Iterator[tuple[CorpusConfig, Example]]:
    for corpus in corpora:
        for example in iter_examples(_as_they_are(corpus), dropped):
            yield corpus, example


def _text(example: Example) -> str:
    return example.text if example.text is not None else joined_text(example.messages or [])


def _in_question(text: str, lengths: Sequence[int], owners: Mapping[Ngram, list[str]]) -> Iterator[Ngram]:
    found = words(text)
    grams = (tuple(found[k : k + n]) for n in lengths for k in range(len(found) - n + 1))
    return (gram for gram in grams if gram in owners)
