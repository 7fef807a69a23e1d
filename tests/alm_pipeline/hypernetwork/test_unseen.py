"""A small model, trained here, whose hypernetwork has to help with a BPE tokenizer that it has never drawn."""

import json
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import CorpusConfig, FilesSource, ScoreConfig
from alm_pipeline.hypernetwork.settings import parse_hypernet_config
from alm_pipeline.hypernetwork.stage import HypernetPipeline
from alm_pipeline.transfer.zero_step import transfer
from tests import tiny

pytestmark = pytest.mark.long


def python_files() -> list[str]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files if file.stat().st_size > 4000]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers of 64 channels, which have read 2 MB of Python."""
    tokenizer = tiny.byte_level_tokenizer(600, [text[:20_000] for text in python_files()[:60]])
    tokenizer.chat_template = None
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=512, tie_word_embeddings=True)
    )
    ids = torch.tensor([id_ for text in python_files()[:-20] for id_ in tokenizer(text[:20_000]).input_ids])
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for _ in range(700):
        starts = torch.randint(len(ids) - 65, (16,))
        rows = torch.stack([ids[start : start + 64] for start in starts])
        loss = made(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tiny.save(tmp_path_factory.mktemp("trained") / "model", made, tokenizer)


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_the_gap_to_the_own_tokenizer_is_closed(seed: int, model: str, tmp_path: Path) -> None:
    rows = [text[at : at + 400] for text in python_files()[:-20] for at in range(0, 12_000, 400)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    unread = [text[2000:3000] for text in python_files()[-20:]]
    (tmp_path / "unread.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in unread))
    target = tiny.byte_level_tokenizer(2000, [text[1000:12_000] for text in python_files()[20:-20:2]])
    target.chat_template = None
    target.save_pretrained(tmp_path / "target")
    config = parse_hypernet_config(
        {
            "corpus": {
                "name": "python",
                "source": {"kind": "files", "urls": [str(tmp_path / "corpus.jsonl")]},
                "max_bytes": 400,
                "held_out": 0.02,
            },
            "model": model,
            "sampler": {"min_tokens": 600, "max_tokens": 3000},
            "network": {"rank": 64},
            "train": {"steps": 150, "texts": 8, "learning_rate": 3e-3, "seed": seed},
            "evaluation": {"trained": {"vocab_size": 1400}, "steps": 50, "max_examples": 8},
        }
    )
    network = HypernetPipeline(config, str(tmp_path / "data"))
    network.run()
    folders = {"fvt": {}, "hypernetwork": {"hypernetwork": str(network.hypernetwork.fetch())}}
    for method, setting in folders.items():
        settings = {"initialization": method, "level": "none", **setting}
        transfer(model, str(tmp_path / "target"), tmp_path / method, **settings)  # type: ignore[arg-type]
    names = [model, *(str(tmp_path / method) for method in folders)]
    texts = CorpusConfig(name="unread", source=FilesSource(urls=(str(tmp_path / "unread.jsonl"),)))
    own, fvt, predicted = compare_models(names, [texts], ScoreConfig(dtype="float32")).bits_per_byte
    assert own < fvt
    assert (fvt - predicted) / (fvt - own) >= 0.2
