"""All stages of a hypernetwork, from a corpus to its folder, without Prefect.

    from alm_pipeline.hypernetwork.settings import load_hypernet_config
    from alm_pipeline.hypernetwork.stage import HypernetPipeline

    print(HypernetPipeline(load_hypernet_config(Path("hypernet.yaml")), "alm-data").run().results)

Examples, teacher tokens and scores are those of any run with the same corpus and model. A stage skips what exists.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.hypernetwork.batches import BatchMaker, TextStream
from alm_pipeline.hypernetwork.card import results_of, write_reports
from alm_pipeline.hypernetwork.evaluation import HypernetEvaluator
from alm_pipeline.hypernetwork.frozen_model import FrozenModel
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork, HypernetworkConfig, HypernetworkSource
from alm_pipeline.hypernetwork.networks.registry import make_network
from alm_pipeline.hypernetwork.sampling.sampler import TokenizerSampler
from alm_pipeline.hypernetwork.sampling.stage import read_substrings, substrings_folder, write_substrings
from alm_pipeline.hypernetwork.settings import HypernetConfig
from alm_pipeline.hypernetwork.training import HypernetTraining
from alm_pipeline.models.configuration import refuse_other_tables
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.stage import tokenizer_folder, write_tokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.phases import Phase
from alm_pipeline.provenance import provenance
from alm_pipeline.training.loop.checkpoints import RECORD, CheckpointKeeper, remove_damaged
from storage.dataset import Dataset
from storage.errors import UserError, naming
from storage.folders import CHECKPOINTS, FolderManifest, StoredFolder
from storage.lease import Lease
from storage.printed.secrets import without_secrets

STAGE_VERSION = 1


class HypernetPipeline:
    """One configuration's datasets and its hypernetwork, under one storage root (any fsspec URL)."""

    def __init__(self, config: HypernetConfig, root: str) -> None:
        self.config, self.root = config, root
        self.pipeline = Pipeline(config.distillation(), root)
        """the stages up to the teacher's scores"""

    @property
    def source(self) -> ModelReference:
        """The model whose tokenizers are to be exchanged."""
        return self.pipeline.source

    def require_ready(self) -> None:
        """Raise one UserError with all that would stop the run, within seconds."""
        self.source.refuse_adapter()
        refuse_other_tables(self.source.load_config(), self.source.name)
        if self.config.corpus.messages is not None:
            raise UserError(
                "corpus.messages: a hypernetwork is trained on plain texts: name a column of text as corpus.text, and "
                "leave corpus.messages out"
            )
        if self.config.teacher and not self.config.needs_scores:
            raise UserError(
                "teacher: is not used, as the objective has no term alm: leave it out, or set objective.terms to "
                "{alm: 1}"
            )
        if not self.config.corpus.held_out:
            raise UserError("corpus.held_out: is 0, and held-out texts decide which network is kept: set it to 0.05")
        for tokenizer in self._named_tokenizers.values():
            _ = tokenizer.view
        _refuse_same(self._named_tokenizers)
        phases: list[Phase] = ["prepare", "score"] if self.config.needs_scores else ["prepare"]
        self.pipeline.require_ready(phases)

    def shard(self) -> None:
        """Read the corpus and write its examples in shards; train the tokenizer to evaluate with."""
        self.pipeline.shard()
        held_out_texts(self.pipeline.examples, 1)  # raises if there is none: before anything is scored
        if self._trained_tokenizer:
            setting = self.config.evaluation.trained
            assert setting
            write_tokenizer(self._trained_tokenizer, [self.pipeline.corpus], setting, self.source.tokenizer)
        _refuse_same(self._evaluated_tokenizers())

    def score(self) -> None:
        """Tokenize the examples and let the teacher score them, if the objective compares likelihoods."""
        if self.config.needs_scores:
            self.pipeline.tokenize("teacher")
            self.pipeline.score()

    def substrings(self) -> FolderManifest:
        """Count the substrings that tokenizers are drawn from."""
        return write_substrings(self.stored_substrings, self.pipeline.examples, self.config.sampler)

    def run(self) -> FolderManifest:
        """Run every stage. Raises UserError as `require_ready` does."""
        if manifest := self._finished():
            return manifest
        self.require_ready()
        self.shard()
        self.score()
        self.substrings()
        return self.train()

    def _finished(self) -> FolderManifest | None:
        try:
            return self.hypernetwork.manifest()
        except UserError:  # the tokenizer that it is named by has yet to be made
            return None

    @cached_property
    def stored_substrings(self) -> StoredFolder:
        folder = substrings_folder(self.pipeline.examples, self.config.sampler)
        return replace(folder, provenance=self._provenance)

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        own = {"configuration": without_secrets(self.config.model_dump(mode="json"))}
        return provenance(self.pipeline.config) | own

    @cached_property
    def _trained_tokenizer(self) -> StoredFolder | None:
        setting = self.config.evaluation.trained
        if setting is None:
            return None
        folder = tokenizer_folder([self.pipeline.corpus], setting, self.source.tokenizer, self.root)
        return replace(folder, provenance=provenance(self.pipeline.config))

    @cached_property
    def _named_tokenizers(self) -> dict[str, LoadedTokenizer]:
        names = self.config.evaluation.tokenizers
        with naming("evaluation.tokenizers"):
            refuse_repeated(names, "tokenizer")
        return {name: LoadedTokenizer(name) for name in names}

    def _evaluated_tokenizers(self) -> dict[str, LoadedTokenizer]:
        trained = self._trained_tokenizer
        made = {trained.name: LoadedTokenizer(str(trained.fetch()))} if trained else {}
        return {**self._named_tokenizers, **made}

    @cached_property
    def _datasets(self) -> dict[str, Dataset]:
        examples = {"examples": self.pipeline.examples}
        if not self.config.needs_scores:
            return examples
        return {**examples, "teacher_tokens": self.pipeline.tokens("teacher"), "scores": self.pipeline.scores}

    @cached_property
    def hypernetwork(self) -> StoredFolder:
        """The folder of the trained network, whether or not it exists yet."""
        config, trained = self.config, self._trained_tokenizer
        tokenizers = {name: tokenizer.identity for name, tokenizer in self._named_tokenizers.items()}
        source = HypernetworkSource.of(self.source)
        identity = {
            "stage_version": STAGE_VERSION,
            "inputs": {role: dataset.name for role, dataset in self._datasets.items()}
            | {"substrings": self.stored_substrings.name},
            "source": {"model": source.model, "tokenizer": source.tokenizer},
            "objective": config.objective.model_dump(mode="json", exclude={"learn", "learned_turns"}),
            "sampler": config.sampler.model_dump(mode="json"),
            "network": config.network.model_dump(mode="json"),
            "train": config.training_identity(),
            "evaluation": config.evaluation.model_dump(mode="json", exclude={"tokenizers", "trained"}),
            "tokenizers": {**tokenizers, **({"trained": trained.name} if trained else {})},
        }
        folder = StoredFolder(self.root, "hypernetworks", self.source.label, identity)
        return replace(folder, provenance=self._provenance)

    def train(self) -> FolderManifest:
        """Train the network, unless it is finished. If another run is training it, wait for that run's result."""
        folder = self.hypernetwork
        if not folder.is_to_be_replaced and (manifest := folder.manifest()) and not folder.has(CHECKPOINTS):
            return manifest
        with folder.held() as lease:
            if target := folder.to_make(lease):
                self._train_and_save(target, lease)
                folder.settle(lease)
            folder.remove(CHECKPOINTS)  # a kill may have come between the manifest and this
            made = folder.manifest()
        assert made
        return made

    def _train_and_save(self, folder: StoredFolder, lease: Lease) -> None:
        config, model = self.config, self.source.load(self.config.train.dtype)
        folder.path.mkdir(parents=True, exist_ok=True)
        remove_damaged(folder.path / CHECKPOINTS)  # the store may have them whole
        folder.restore(CHECKPOINTS)

        def upload(names: Collection[str]) -> None:
            lease.check()
            folder.mirror(CHECKPOINTS, names, RECORD)

        with CheckpointKeeper(folder.path / CHECKPOINTS, 1, lambda: None, upload) as keeper:
            training = self._training(model, folder, keeper)
            state = training.run()
        own = HypernetworkConfig(
            source=HypernetworkSource.of(self.source),
            network=config.network,
            widths=training.frozen.source.widths,
        )
        Hypernetwork(own, training.network).save(folder.path)
        results = results_of(state)
        write_reports(folder.path, config, state, results)
        self.source.check_unchanged()
        for tokenizer in (self.source.tokenizer, *self._evaluated_tokenizers().values()):
            tokenizer.check_unchanged()
        content = Hypernetwork.load(str(folder.path)).identity
        folder.finish(results, lease, content=content)
        folder.remove(CHECKPOINTS)

    def _training(self, model: PreTrainedModel, folder: StoredFolder, keeper: CheckpointKeeper) -> HypernetTraining:
        config, tokenizer, seed = self.config, self.source.tokenizer, self.config.train.seed
        rows = embedding_rows(model)
        frozen = FrozenModel(model, min(rows, tokenizer.view.size))
        texts = held_out_texts(self.pipeline.examples, config.evaluation.max_examples)
        sampler = TokenizerSampler(read_substrings(self.stored_substrings), tokenizer, rows, config.sampler, seed)
        return HypernetTraining(
            config,
            frozen,
            make_network(config.network, frozen.source.widths, seed).to(frozen.device),
            sampler,
            TextStream(self._datasets, seed, config.train.shuffle_buffer),
            BatchMaker(config.objective, tokenizer, self.pipeline.teacher.tokenizer),
            HypernetEvaluator(frozen, tokenizer, self._evaluated_tokenizers(), texts),
            folder.path / CHECKPOINTS,
            keeper.keep,
        )


def _refuse_same(tokenizers: Mapping[str, LoadedTokenizer]) -> None:
    """Raise UserError if two cut texts into the same tokens: they would count twice in the mean that chooses a step."""
    names: dict[str, str] = {}
    for name, tokenizer in tokenizers.items():
        if (other := names.setdefault(tokenizer.definition, name)) != name:
            raise UserError(f"evaluation.tokenizers: {other} and {name} are the same tokenizer: leave one of them out")


def held_out_texts(examples: Dataset, count: int) -> list[str]:
    """Return the first held-out texts. Raises UserError if there is none."""
    texts = list[str]()
    for shard in range(len(examples.complete_manifest().shards)):
        rows = examples.read_shard(shard, ["split", "text"]).to_pylist()
        texts += [row["text"] for row in rows if row["split"] == "held_out" and len(row["text"].encode()) > 1]
        if len(texts) >= count:
            break
    if not texts:
        raise UserError(f"{examples.url}: no held-out text to evaluate on: use a larger corpus, or corpus.held_out")
    return texts[:count]
