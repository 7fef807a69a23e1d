"""What an audit reads, found from one URL: the caches, the configuration, the models and their tokenizers.

Of a student of a mixture, that is each source for itself, with its own teacher.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from alm_pipeline.config import AlmConfig, ObjectiveConfig
from alm_pipeline.corpus.stage import learns_completions, learns_marked
from alm_pipeline.inspection.token_texts import tokenizers_of
from alm_pipeline.models.loaded_files import check_same
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.objective.chunking.pair_bias import PairBiases
from alm_pipeline.objective.chunking.pair_bias_stage import pair_bias_folder, read_pair_biases
from alm_pipeline.objective.chunking.registry import CHUNKINGS, chunk_ends
from alm_pipeline.provenance import stored_config
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from storage.dataset import Dataset, load_manifest, open_dataset
from storage.errors import UserError
from storage.folders import StoredFolder, load_folder_manifest
from storage.schemas import Kind
from storage.urls import absolute_url, join_url, list_folders

_KINDS = {
    "examples": Kind.EXAMPLES,
    "teacher_tokens": Kind.TOKENS,
    "student_tokens": Kind.TOKENS,
    "alignments": Kind.ALIGNMENTS,
    "scores": Kind.TEACHER_SCORES,
}


@dataclass(frozen=True)
class AuditSource:
    """The caches of one student, or of one teacher and one tokenizer, and what they were made with."""

    url: str
    datasets: Mapping[str, Dataset]
    """by role: examples, teacher_tokens, student_tokens, alignments, scores"""
    config: AlmConfig
    """as the manifest records it"""
    student_folder: StoredFolder | None
    teacher_name: str
    student_name: str | None
    trust_remote_code: bool
    name: str | None = None
    """of one of several sources that the student was trained on"""

    @classmethod
    def open(
        cls, url: str, *, teacher: str | None = None, student: str | None = None, trust_remote_code: bool = False
    ) -> "list[AuditSource]":
        """Open a student's folder, alignments or teacher's scores; of a student of a mixture, each of its sources.

        `teacher` and `student` are models that have moved since; the teacher's files must be the same. Raises
        UserError if the URL holds something else, if the caches are not there, if several others fit them, or if
        `teacher` is named for sources of several teachers.
        """
        found = _caches_at(url)
        if student and not found[0].student:
            raise UserError(
                f"--student {student}: only a student's folder has a student to audit: leave the option out"
            )
        if teacher and len({caches.datasets["scores"].identity["teacher"] for caches in found}) > 1:
            scores = ", ".join(caches.datasets["scores"].url for caches in found)
            raise UserError(
                f"--teacher {teacher}: the sources of {url} have several teachers: audit the scores of each: {scores}"
            )
        return [
            cls(
                url,
                caches.datasets,
                caches.config,
                caches.student,
                teacher or _teacher(caches.datasets["scores"]) or caches.config.teacher,
                student,
                trust_remote_code or caches.config.trust_remote_code,
                caches.source,
            )
            for caches in found
        ]

    @cached_property
    def objective(self) -> ObjectiveConfig:
        """The objective that chunks are made for. Of completions and marked messages, only answers are learned."""
        objective, examples = self.config.objective, self.datasets["examples"]
        if learns_completions(examples) or learns_marked(examples):
            return objective.model_copy(update={"assistant_only": True})
        return objective

    @cached_property
    def teacher(self) -> ModelReference:
        """The teacher. Raises UserError if its files are not those that scored."""
        template = TemplateChoice.of("teacher_template", self.config.teacher_template)
        teacher = ModelReference(self.teacher_name, self.trust_remote_code, template)
        scores = self.datasets["scores"]
        check_same(teacher.name, teacher.identity, scores.identity["teacher"], scores.name)
        return teacher

    @cached_property
    def student(self) -> ModelReference | None:
        """The finished student; None for caches alone."""
        if self.student_folder is None:
            return None
        folder = self.student_name or str(self.student_folder.fetch())
        return ModelReference(folder, self.trust_remote_code)

    @cached_property
    def tokenizers(self) -> Mapping[str, LoadedTokenizer]:
        """Both sides' tokenizers, by role of their tokens. Raises UserError if one is not there any more."""
        models = {"teacher_tokens": self.teacher, "student_tokens": self.student}
        return {role: _tokenizer(self.datasets[role], model) for role, model in models.items()}

    def chunk_ends(self) -> ChunkEnds | None:
        """Where chunks may end, for a chunking that looks at tokens."""
        if not CHUNKINGS[self.objective.chunking].looks_at_tokens:
            return None
        return chunk_ends(self.objective, self._pair_biases)

    def _pair_biases(self) -> PairBiases:
        return read_pair_biases(pair_bias_folder(self.datasets["alignments"], *self.tokenizers.values()))


class _Caches(NamedTuple):
    """Caches that a URL leads to, and the configuration that made them."""

    datasets: Mapping[str, Dataset]
    config: AlmConfig
    student: StoredFolder | None = None
    source: str | None = None


def _caches_at(url: str) -> list[_Caches]:
    root, kind, name = absolute_url(url).rsplit("/", 2)
    if kind == "students":
        return list(_of_student(url, root, name))
    if kind in (Kind.ALIGNMENTS, Kind.TEACHER_SCORES):
        return [_of_caches(url)]
    raise UserError(
        f"{url}: is not the folder of a student, of alignments or of teacher scores, which can be audited; "
        "`alm list ROOT` lists them"
    )


def _of_student(url: str, root: str, name: str) -> Iterator[_Caches]:
    """Yield the caches of a finished student; of a mixture, those of each source."""
    manifest = load_folder_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: not a finished student (it has no manifest.json); `alm list ROOT` lists the students")
    inputs, config = manifest.identity["inputs"], stored_config(dict(manifest.provenance), url)
    folder = StoredFolder(root, "students", name.rpartition("-")[0], manifest.identity)
    for part in config.parts:
        prefix = f"{part.corpus_name}: " if config.is_mixture else ""
        datasets = {role: open_dataset(join_url(root, kind, inputs[prefix + role])) for role, kind in _KINDS.items()}
        yield _Caches(datasets, part, folder, part.corpus_name if config.is_mixture else None)


def _of_caches(url: str) -> _Caches:
    """Return the datasets that belong to alignments or to scores, with what the dataset's manifest records."""
    dataset = open_dataset(url)
    if dataset.kind == Kind.ALIGNMENTS:
        tokens = dataset.identity["teacher_tokens"]
        alignments, scores = dataset, _only(dataset, Kind.TEACHER_SCORES, "tokens", tokens)
    else:
        tokens = dataset.identity["tokens"]
        alignments, scores = _only(dataset, Kind.ALIGNMENTS, "teacher_tokens", tokens), dataset
    sides = {
        role: open_dataset(join_url(dataset.root, Kind.TOKENS, alignments.identity[role]))
        for role in ("teacher_tokens", "student_tokens")
    }
    examples = open_dataset(join_url(dataset.root, Kind.EXAMPLES, sides["teacher_tokens"].identity["examples"]))
    datasets = {"examples": examples, **sides, "alignments": alignments, "scores": scores}
    return _Caches(datasets, stored_config(dict(dataset.complete_manifest().provenance), url))


def _teacher(scores: Dataset) -> str | None:
    """Return the teacher's name where it scored: another run, for another teacher, may have made the alignments."""
    configuration = scores.complete_manifest().provenance.get("configuration")
    name = configuration.get("teacher") if isinstance(configuration, Mapping) else None
    return name if isinstance(name, str) else None


def _only(dataset: Dataset, kind: Kind, role: str, tokens: str) -> Dataset:
    """Return the complete dataset of this kind that was made from these tokens. Raises UserError unless it is one."""
    urls = [join_url(dataset.root, kind, name) for name in list_folders(join_url(dataset.root, kind))]
    manifests = {url: load_manifest(url) for url in urls}
    found = [url for url, manifest in manifests.items() if manifest and manifest.identity.get(role) == tokens]
    if len(found) == 1:
        return open_dataset(found[0])
    what = str(kind).replace("_", " ")
    if not found:
        raise UserError(
            f"{dataset.url}: the store has no complete {what} of the same tokens: run until the teacher's scores "
            "(`alm run --until scores`) first"
        )
    raise UserError(
        f"{dataset.url}: the store has several {what} of the same tokens: audit one of {', '.join(found)}, or a student"
    )


def _tokenizer(tokens: Dataset, model: ModelReference | None) -> LoadedTokenizer:
    """Return the tokenizer that made a dataset of tokens: the model's, or where the store or the manifest has it."""
    if model and model.tokenizer.identity == tokens.identity["tokenizer"]:
        return model.tokenizer
    for tokenizer in tokenizers_of(tokens):
        return tokenizer
    raise UserError(
        f"{tokens.url}: its tokenizer is not where it was: it is neither in the store nor at the names that its "
        "manifest records: name the model that has it with --teacher or --student"
    )
