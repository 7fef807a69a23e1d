"""The configuration of a run: frozen pydantic models, one for each stage.

A stage's fingerprint covers the fields of its model, so a field changes the data that the stage writes. Where and how
fast it runs (roots, threads, devices, the teacher's batch size) is outside every fingerprint.
"""

from alm_pipeline.config.corpus import (
    Corpus,
    CorpusConfig,
    DecontaminationConfig,
    DeduplicationConfig,
    FileFormat,
    FilesSource,
    GeneratedSource,
    HubSource,
    Layout,
    OneSided,
    Source,
    SourceConfig,
    WrittenSource,
)
from alm_pipeline.config.evaluation import ChosenStep, EvaluationConfig, HeldOutMetric
from alm_pipeline.config.frozen import SEEDS, Frozen, Number, Whole
from alm_pipeline.config.objective import (
    LEARNED_PARTS,
    LIVE_TERMS,
    TOP_TERMS,
    Balance,
    Chunking,
    Debias,
    Divergence,
    LearnedPart,
    LearnedTurns,
    ObjectiveConfig,
    Ramp,
    Term,
)
from alm_pipeline.config.rounds import PromptsConfig, RoundsConfig, SamplingConfig
from alm_pipeline.config.run import AlmConfig, LogConfig, PublishConfig, Tracker, load_config, parse_config
from alm_pipeline.config.scoring import Dtype, Engine, ScoreConfig, ServedConfig
from alm_pipeline.config.student import BYTES, Level, Method, SpecialTokens, StudentConfig, TrainedTokenizer
from alm_pipeline.config.template import TemplateConfig
from alm_pipeline.config.training import ComputationDtype, LoraConfig, Schedule, Sharding, TrainConfig

__all__ = [
    "BYTES",
    "LEARNED_PARTS",
    "LIVE_TERMS",
    "SEEDS",
    "TOP_TERMS",
    "AlmConfig",
    "Balance",
    "ChosenStep",
    "Chunking",
    "ComputationDtype",
    "Corpus",
    "CorpusConfig",
    "Debias",
    "DecontaminationConfig",
    "DeduplicationConfig",
    "Divergence",
    "Dtype",
    "Engine",
    "EvaluationConfig",
    "FileFormat",
    "FilesSource",
    "Frozen",
    "GeneratedSource",
    "HeldOutMetric",
    "HubSource",
    "Layout",
    "LearnedPart",
    "LearnedTurns",
    "Level",
    "LogConfig",
    "LoraConfig",
    "Method",
    "Number",
    "ObjectiveConfig",
    "OneSided",
    "PromptsConfig",
    "PublishConfig",
    "Ramp",
    "RoundsConfig",
    "SamplingConfig",
    "Schedule",
    "ScoreConfig",
    "ServedConfig",
    "Sharding",
    "Source",
    "SourceConfig",
    "SpecialTokens",
    "StudentConfig",
    "TemplateConfig",
    "Term",
    "Tracker",
    "TrainConfig",
    "TrainedTokenizer",
    "Whole",
    "WrittenSource",
    "load_config",
    "parse_config",
]
