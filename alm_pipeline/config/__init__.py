"""The configuration of a run: frozen pydantic models, one a stage.

What a stage's model holds is what its fingerprint covers, so a field changes the data that the stage writes; how fast
or where it runs (roots, threads, devices, how much a batch of the teacher's holds) is outside of every fingerprint.
"""

from alm_pipeline.config.corpus import CorpusConfig, FilesSource, GeneratedSource, HubSource, Source
from alm_pipeline.config.evaluation import EvaluationConfig, HeldOutScore
from alm_pipeline.config.frozen import Frozen
from alm_pipeline.config.objective import LIVE_TERMS, Balance, Chunking, Divergence, ObjectiveConfig, Ramp, Term
from alm_pipeline.config.run import AlmConfig, LogConfig, PublishConfig, Tracker, load_config, parse_config
from alm_pipeline.config.scoring import Dtype, ScoreConfig
from alm_pipeline.config.student import BYTES, Method, SpecialTokens, StudentConfig, TrainedTokenizer
from alm_pipeline.config.training import LoraConfig, TrainConfig

__all__ = [
    "BYTES",
    "LIVE_TERMS",
    "AlmConfig",
    "Balance",
    "Chunking",
    "CorpusConfig",
    "Divergence",
    "Dtype",
    "EvaluationConfig",
    "FilesSource",
    "Frozen",
    "GeneratedSource",
    "HeldOutScore",
    "HubSource",
    "LogConfig",
    "LoraConfig",
    "Method",
    "ObjectiveConfig",
    "PublishConfig",
    "Ramp",
    "ScoreConfig",
    "Source",
    "SpecialTokens",
    "StudentConfig",
    "Term",
    "Tracker",
    "TrainConfig",
    "TrainedTokenizer",
    "load_config",
    "parse_config",
]
