from pathlib import Path

import numpy as np
import torch

from pipeline.config import PreprocessConfig
from pipeline.data import Dataset
from pipeline.data.fetch import SampleReader
from pipeline.data.order import PADDED
from pipeline.data.preprocess import Augmentation
from pipeline.data.sample_decoder import DecodeThreads, SampleDecoder
from tests.support.digit_models import pack_digits

PREPROCESS = PreprocessConfig(image_size=8, channels=1)


def test_pixels_are_those_of_their_slots_whatever_the_threads_and_a_padded_slot_is_black(
    tmp_path: Path,
) -> None:
    dataset = Dataset.open(str(pack_digits(tmp_path)))
    reader = SampleReader(dataset, 4, 2**20, ())
    decoder = SampleDecoder(reader, PREPROCESS, Augmentation(flip=True), seed=3)
    ids = [7, PADDED, 2, 7, 11, 0, PADDED]
    found = []
    for count in (1, 3):
        threads = DecodeThreads(decoder, count)
        batch = threads.submit(5, 0, ids, [True, False] * 3 + [True])
        rows = batch.rows(60)
        assert batch.is_ready
        threads.close()
        assert [row.key for row in rows] == ["" if n == PADDED else reader.key(n) for n in ids]
        found.append(batch.images)
    assert torch.equal(*found)
    black = [bool((image == 0).all()) for image in found[0]]
    assert black == [n == PADDED for n in ids]
    assert np.array_equal(found[0][0], found[0][3])
