import numpy as np
import pytest

from msde.data_tools.parsing import labels


def test_numbers_and_missing_values():
    assert labels.number(" 1e-3") == 1e-3
    assert all(np.isnan(labels.number(text)) for text in ("", " ", "NaN", "n/a", "None"))
    for text in ("inf", "1.2.3", "C"):
        with pytest.raises(ValueError):
            labels.number(text)
