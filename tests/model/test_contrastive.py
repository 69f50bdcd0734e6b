import math

import pytest
import torch

from fixtures.molecules import batch_of, make_record
from msde.config import LossConfig
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.model.contrastive import OBJECTIVES, GraphEBMNCE, InfoNCE, NodeEBMNCE, ebm_nce, info_nce
from msde.ops import segment_mean
from msde.philox import Stream


def rows_of(objective, batch):
    return batch.num_atoms if objective.level == "node" else batch.num_graphs


def evaluate(objective, h, other, batch):
    return objective(h, other, objective.draw(batch, Stream.NEGATIVES_OF_2D), batch)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_of_uninformative_and_of_separated_representations(name, batch):
    objective = OBJECTIVES[name](LossConfig(exclude_true_pairs=True))
    rows = rows_of(objective, batch)
    loss, _ = evaluate(objective, torch.zeros(rows, 4), torch.zeros(rows, 4), batch)
    by_chance = math.log(rows) if name == "info_nce" else 2 * math.log(2)
    assert torch.allclose(loss, torch.full((batch.num_graphs,), by_chance))
    apart = 10 * (torch.eye(rows) - 1 / rows)  # each row is near itself and away from all others
    loss, accuracy = evaluate(objective, apart, apart, batch)
    bound = math.log(2) if name == "node_ebm_nce" else by_chance
    assert (loss < bound).all() and (accuracy == 1).all()


def test_values_computed_by_hand():
    loss, accuracy = ebm_nce(torch.tensor([1.0, -1.0]), torch.tensor([[0.5, -2.0], [-1.0, -1.0]]))
    first = math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5)) + math.log1p(math.exp(-2))
    assert loss[0].item() == pytest.approx(first)
    assert accuracy.tolist() == pytest.approx([2 / 3, 2 / 3])
    loss, accuracy = info_nce(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1]))
    assert loss[0].item() == pytest.approx(math.log1p(math.exp(-1)))
    assert accuracy.tolist() == [1, 0]


def test_graph_negatives_are_the_next_molecules(batch):
    h = torch.randn(batch.num_graphs, 4)
    other = torch.randn(batch.num_graphs, 4)
    objective = GraphEBMNCE(LossConfig(num_shifts=3, temperature=1.0))
    loss, _ = evaluate(objective, h, other, batch)
    expected = torch.nn.functional.softplus(-(h * other).sum(-1))
    for k in (1, 2, 3):
        expected = expected + torch.nn.functional.softplus((h * other.roll(-k, 0)).sum(-1))
    assert torch.allclose(loss, expected)


def test_more_shifts_than_molecules_never_reach_the_true_pair(batch):
    same = torch.randn(batch.num_graphs, 4)
    all_others = GraphEBMNCE(LossConfig(num_shifts=batch.num_graphs - 1))
    more = GraphEBMNCE(LossConfig(num_shifts=100))
    assert torch.equal(*(evaluate(o, same, same, batch)[0] for o in (all_others, more)))


def test_exclude_true_pairs_never_draws_an_atom_as_its_own_negative(batch):
    own = torch.arange(batch.num_atoms)
    for number in range(20):
        stream = Stream.NEGATIVES_OF_2D
        keyed = MoleculeBatch(**{**batch.__dict__, "key": batch.key._replace(epoch=number)})
        published = NodeEBMNCE(LossConfig()).draw(keyed, stream)
        corrected = NodeEBMNCE(LossConfig(exclude_true_pairs=True)).draw(keyed, stream)
        for negatives in (published, corrected):
            assert torch.equal(negatives.sort().values, own)
        assert not (corrected == own).any()
        if (published == own).any():
            return
    raise AssertionError("permutations should leave an atom in its place now and then")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_single_atom_has_no_negative(name):
    alone = batch_of("C")
    objective = OBJECTIVES[name](LossConfig(temperature=1.0, exclude_true_pairs=True))
    h = torch.tensor([[0.5, 0.5]], requires_grad=True)
    loss, accuracy = evaluate(objective, h, h, alone)
    loss.sum().backward()
    expected = 0.0 if name == "info_nce" else math.log1p(math.exp(-0.5))
    assert loss.item() == pytest.approx(expected) and accuracy.item() == 1
    assert h.grad.isfinite().all()


@pytest.mark.parametrize("objective", [NodeEBMNCE, GraphEBMNCE, InfoNCE])
def test_gradients_agree_with_finite_differences(objective, batch):
    torch.manual_seed(0)
    made = objective(LossConfig(temperature=1.0, num_shifts=2))
    shape = (rows_of(made, batch), 2)
    h, other = (torch.randn(shape, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: evaluate(made, a, b, batch)[0], (h, other))


def rank_of_two(rank, store, results):
    """Slots of different sizes on two ranks; negatives from both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {}
    for name, objective in OBJECTIVES.items():
        config = LossConfig(temperature=0.5, num_shifts=3, negatives="ranks")
        config.exclude_true_pairs = True
        batch, h, weight = slot_of(rank, objective)
        made = objective(config)
        drawn = made.draw(batch, Stream.NEGATIVES_OF_2D)
        loss, accuracy = made(h, torch.tanh(h @ weight), drawn, batch)
        loss.mean().backward()
        torch.distributed.all_reduce(weight.grad)  # as data-parallel training does
        found[name] = [loss.detach(), weight.grad / 2, drawn, accuracy]
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def slot_of(rank, objective):
    smiles = [["CCO", "c1ccccc1", "CN"], ["CC(=O)O", "C", "CCCl", "N#N"]][rank]
    records = [make_record(s, line + 10 * rank) for line, s in enumerate(smiles)]
    batch = MoleculeBatch.from_columns(columns_from_records(records))
    generator = torch.Generator().manual_seed(rank)
    h = torch.randn(rows_of(objective, batch), 4, generator=generator)
    weight = torch.eye(4).add(0.1).requires_grad_()
    return batch, h, weight


def test_negatives_of_all_ranks_equal_one_process_that_sees_them_all(tmp_path):
    """Losses, and gradients of the mean over ranks, in slots of different sizes."""
    store = f"file://{tmp_path}/store"
    torch.multiprocessing.spawn(rank_of_two, (store, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, objective in OBJECTIVES.items():
        slots = [slot_of(rank, objective) for rank in (0, 1)]
        weight = slots[0][2]
        h = [slot[1] for slot in slots]
        other = [torch.tanh(rows @ weight) for rows in h]
        pool, first = torch.cat(other), [0, len(h[0])]
        losses = []
        for rank in (0, 1):
            own = first[rank] + torch.arange(len(h[rank]))
            positive = (h[rank] * other[rank]).sum(-1) / 0.5
            if name == "info_nce":
                loss, _ = info_nce(h[rank] @ pool.T / 0.5, own)
            elif name == "graph_ebm_nce":
                shifted = [pool[(own + k) % len(pool)] for k in (1, 2, 3)]
                against = torch.stack([(h[rank] * rows).sum(-1) for rows in shifted], dim=-1)
                loss, _ = ebm_nce(positive, against / 0.5)
            else:
                drawn = found[rank][name][2]
                negative = drawn * (len(pool) - 1) >> 32
                negative = negative + (negative >= own)
                assert not (negative == own).any()
                against = (h[rank] * pool[negative]).sum(-1, keepdim=True) / 0.5
                per_atom, _ = ebm_nce(positive, against)
                batch = slots[rank][0]
                loss = segment_mean(per_atom, batch.batch, batch.atoms_per_graph)
            losses.append(loss)
            assert torch.allclose(found[rank][name][0], loss, rtol=1e-5), name
        (sum(loss.mean() for loss in losses) / 2).backward()
        for rank in (0, 1):
            assert torch.allclose(found[rank][name][1], weight.grad, rtol=1e-4, atol=1e-6), name
