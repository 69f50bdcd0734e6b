import collections

import numpy as np
import pytest

from fixtures.blocks import Indexed
from msde.data.mixture import Mixture
from msde.errors import MsdeError


def test_weights_mix_data_sets():
    large, small = Indexed(np.full(1600, 5)), Indexed(np.full(800, 5), digest="other")
    data = Mixture([large, small], [0.5, 2.0])
    assert data.weights == [0.25, 1.0]
    seen = collections.Counter()
    for epoch in range(8):
        blocks = data.blocks(epoch)
        assert len(set(blocks.tolist())) == len(blocks)
        assert (blocks >= 100).sum() == 50  # all of the second
        seen.update(blocks.tolist())
    assert set(seen[b] for b in range(100)) == {2}  # a quarter of the epochs, each block
    assert 10 < (data.blocks(0) < 100).sum() < 40


@pytest.mark.parametrize(
    ("weights", "message"), [([1.0, 0.0], "must be positive"), ([1.0, 1.0], "given twice")]
)
def test_weights_that_are_not_positive_and_repeated_data_sets_are_errors(weights, message):
    with pytest.raises(MsdeError, match=message):
        Mixture([Indexed(np.full(16, 5)), Indexed(np.full(16, 5))], weights)
