"""Prepared encoders are shared within a process, and prepared again in another one."""

import pickle

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.prepared_encoders import Encoders


def test_an_encoder_is_kept_by_the_name_of_its_dataset(llama_folder: str) -> None:
    encoders, encoder = Encoders(), ByteEncoder(LoadedTokenizer(llama_folder))
    encoders.keep("one", encoder)
    assert encoders.prepared("one") is encoder
    assert encoders.prepared("other") is None
    encoders.drop("one")
    encoders.drop("one")
    assert encoders.prepared("one") is None


def test_another_process_has_one_copy_and_no_encoders(llama_folder: str) -> None:
    encoders = Encoders()
    encoders.keep("one", ByteEncoder(LoadedTokenizer(llama_folder)))
    first, second = (pickle.loads(pickle.dumps(encoders)) for _ in range(2))
    assert first is second
    assert first is not encoders
    assert first.prepared("one") is None
    assert pickle.loads(pickle.dumps(Encoders())) is not first
