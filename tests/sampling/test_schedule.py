import pytest
import torch

from fixtures.gaussians import SDES, Schedule
from msde.errors import MsdeError
from msde.sampling import SAMPLERS, karras_times, uniform_times
from msde.sampling.schedule import intervals

kinds = pytest.mark.parametrize("kind", SDES)


@kinds
@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_times_space_a_root_of_sigma_equally(kind, rho):
    times = karras_times(SDES[kind], 9, rho=rho, first=0.9, last=0.01)
    assert times.dtype == torch.float64 and times[0] == 0.9 and times[-1] == 0.01
    roots = torch.tensor([Schedule(kind).sigma(t) ** (1 / rho) for t in times.tolist()])
    gaps = roots.diff()
    assert (gaps < 0).all() and torch.allclose(gaps, gaps.mean().expand(9), rtol=1e-3)
    assert len(intervals(times)) == 9


def test_uniform_times_are_equally_spaced():
    assert torch.allclose(
        uniform_times(4, last=0.2), torch.tensor([1, 0.8, 0.6, 0.4, 0.2]).double()
    )


@pytest.mark.parametrize("times", [[1.0], [0.5, 0.7], [1.0, 0.5, 0.5], [1.0, 0.0], [1.5, 0.5]])
@pytest.mark.parametrize("name", SAMPLERS)
def test_wrong_times_are_an_error(name, times):
    x = torch.zeros(2, 3)
    with pytest.raises(MsdeError, match=r"two or more that descend within \(0, 1\], got \["):
        SAMPLERS[name](
            lambda x, t: -x, SDES["VP"], x, torch.tensor(times), noise=lambda k: torch.zeros(2, 3)
        )
