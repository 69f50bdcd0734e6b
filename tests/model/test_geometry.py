import torch

from msde.ops.frames import edge_frames, pseudo_angle


def test_pseudo_angles_of_atoms_collinear_with_the_origin_are_finite():
    c = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]], requires_grad=True)
    angle = pseudo_angle(c, 3 * c)
    angle.sum().backward()
    assert angle.isfinite().all() and c.grad.isfinite().all()
    assert (angle[:2, 0] < 5e-3).all()  # the sine of zero


def test_frames_of_three_edges_equal_those_of_single_edges():
    """torch.cross without a dimension takes the first one of size three: edges, here."""
    pos = torch.randn(4, 3)
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    frames = edge_frames(pos, edges)
    for edge in range(3):
        one = edge_frames(pos, edges[:, edge : edge + 1])
        assert torch.allclose(frames[edge], one[0])
    e1, e2, e3 = frames.unbind(1)
    assert torch.allclose(torch.linalg.cross(e1, e2), e3)
    assert torch.allclose((e1 * e2).sum(-1), torch.zeros(3), atol=1e-5)
