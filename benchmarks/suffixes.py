"""For how many bytes per second the longest former token is looked up, on this machine's processor and GPU.

python -m benchmarks.suffixes [--megabytes 4] [--tokenizer gemma3]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.transfer.bytes.modeling_ngram_bytes import LONGEST, Ngrams
from alm_pipeline.transfer.bytes.suffix_trie import suffix_trie
from alm_pipeline.vocabulary.byte_view import byte_view, tokens_by_spelling
from benchmarks.corpus import mixed_documents
from tests.real_tokenizers import tokenizer_folder

_TRIED = 20_000
"""bytes whose suffixes are all tried, to compare"""


def spellings(name: str) -> list[bytes]:
    backend = load_tokenizer(str(tokenizer_folder(name))).backend_tokenizer
    return sorted(spelling for spelling in tokens_by_spelling(byte_view(backend)) if len(spelling) <= LONGEST)


def filled(vocabulary: list[bytes]) -> Ngrams:
    trie = suffix_trie(vocabulary)
    ngrams = Ngrams(nn.Embedding(1, 1), len(vocabulary), len(trie.bases))
    for name, values in trie._asdict().items():
        ngrams.get_buffer(name).copy_(torch.from_numpy(values))
    return ngrams


def tried(vocabulary: list[bytes], text: bytes) -> list[int]:
    token_of = {spelling: number for number, spelling in enumerate(vocabulary, 1)}
    places = ((max(0, end - LONGEST), end) for end in range(1, len(text) + 1))
    suffixes = ((text[start:end] for start in range(first, end)) for first, end in places)
    return [next((token_of[suffix] for suffix in each if suffix in token_of), 0) for each in suffixes]


def rates(look_up: Callable[[], Tensor], count: int, times: int = 5) -> tuple[float, float]:
    """Bytes a second of wall time and of the processor's, the best of some runs."""
    runs = []
    for _ in range(times):
        start = time.perf_counter(), time.process_time()
        look_up().cpu()
        runs.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, processor = (min(run) for run in zip(*runs, strict=True))
    return count / wall, count / processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--tokenizer", default="gemma3")
    options = parser.parse_args()
    vocabulary, text = spellings(options.tokenizer), "".join(mixed_documents(options.megabytes)).encode()
    start = time.perf_counter()
    ngrams = filled(vocabulary)
    print(f"{options.tokenizer}: {len(vocabulary):,} tokens, table built in {time.perf_counter() - start:.1f} s")
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None]
    every, none = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    assert ngrams.longest(ids, every, none)[0, :_TRIED].tolist() == tried(vocabulary, text[:_TRIED])
    torch.set_num_threads(1)
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        ngrams.to(device)
        inputs = [tensor.to(device) for tensor in (ids, every, none)]
        wall, processor = rates(lambda given=inputs: ngrams.longest(*given), len(text))  # type: ignore[misc]
        print(f"{device}: {len(text):,} bytes, {wall / 1e6:.1f} M a second, {processor / 1e6:.1f} M a processor second")


if __name__ == "__main__":
    main()
