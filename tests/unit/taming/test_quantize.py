"""The vector quantiser by hand, and the codebook's life: k-means, revival, ranks, resume."""

import math
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from taming import codebook as codebook_room
from taming.codebook import CodebookLife, codes_used, kmeans, nearest_code, perplexity
from taming.quantize import ResidualVectorQuantizer, VectorQuantizer, build_quantizer, to_vectors
from tests.forks import together


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_published_weights_by_hand():
    """z = 1, nearest code 3: both terms are 4; d commitment/dz = -4, d codebook/dE = 4; commitment weighs 0.25, codebook 1."""
    quantizer = VectorQuantizer(2, 1)
    quantizer.embedding.weight.data = torch.tensor([[3.0], [-2.0]])
    z = torch.full((1, 1, 1, 1), 1.0, requires_grad=True)
    latent, loss, indices = quantizer(z)
    loss.backward()
    assert (latent.item(), loss.item(), indices.item()) == (3.0, 5.0, 0)
    assert z.grad.item() == -1.0
    assert quantizer.embedding.weight.grad.tolist() == [[4.0], [0.0]]


def test_ties_go_to_the_lowest_index():
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 7.0]]), codebook).tolist() == [1, 1, 0]


def test_nearest_agrees_with_double_precision_across_chunks():
    vectors, codebook = torch.randn(1500, 3, generator=generator()), torch.randn(40, 3, generator=generator(1))
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest_code(vectors, codebook), expected)


@pytest.mark.parametrize(
    ("scale", "offset", "apart"),
    [(1, 0, 1), (1, 1000, 1), (1e-3, 50, 1), (1, 0, 1e-7), (1e18, 0, 1), (1e19, 0, 1), (1e-22, 0, 1)],
)
def test_what_a_product_finds_is_what_sums_find(scale, offset, apart):
    """Also where rounding decides, codes are equal, and squares overflow or vanish."""
    codebook = offset + scale * torch.randn(60, 12, generator=generator())
    codebook[30:] = codebook[:30] + apart * scale * torch.randn(30, 12, generator=generator(1))
    codebook[7], codebook[50] = codebook[3], codebook[20]
    vectors = torch.cat([offset + scale * torch.randn(1500, 12, generator=generator(2)), codebook])
    vectors[5, 3], vectors[6, 2] = torch.nan, torch.inf
    expected = codebook_room._nearest_by_sums(vectors, codebook)
    assert torch.equal(nearest_code(vectors, codebook), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(vectors, codebook), expected)


def test_initial_codebook_range():
    weight = VectorQuantizer(64, 4).embedding.weight
    assert weight.abs().max() <= 1 / 64
    assert weight.std().item() == pytest.approx(1 / 64 / math.sqrt(3), rel=0.15)


def test_codes_under_autocast_are_those_of_float32():
    quantizer = VectorQuantizer(256, 4)
    torch.nn.init.normal_(quantizer.embedding.weight, generator=generator())
    z = torch.randn(2, 4, 5, 6, generator=generator(1)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latent, loss, indices = quantizer(z)
    assert latent.dtype == loss.dtype == torch.float32
    assert torch.equal(indices, quantizer(z.float()).indices)
    assert torch.equal(latent, quantizer.lookup(indices))


def test_lookup_takes_stored_bytes():
    quantizer = VectorQuantizer(256, 4)
    indices = torch.randint(256, (2, 3, 5))
    assert torch.equal(quantizer.lookup(indices.to(torch.uint8)), quantizer.lookup(indices))


def test_vectors_are_in_the_order_of_indices():
    latent = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    rows = to_vectors(latent)
    assert torch.equal(rows[1 * 20 + 2 * 5 + 3], latent[1, :, 2, 3])


def test_finite_scalars_by_hand():
    """Each channel is rounded on its own: 4 values lie at -1, -0.5, 0 and 0.5, 3 values at -1, 0 and 1; no loss."""
    quantizer = build_quantizer(12, 2, grid=(4, 3))
    z = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.6, -0.4]])[:, :, None, None].requires_grad_()
    latent, loss, indices = quantizer(z)
    assert latent.flatten(1).tolist() == [[0.0, 0.0], [0.5, 1.0], [-1.0, -1.0], [0.5, 0.0]]
    assert indices.flatten().tolist() == [2 * 3 + 1, 3 * 3 + 2, 0, 3 * 3 + 1]
    assert loss.item() == 0
    latent.sum().backward()
    bounded = quantizer.bounded(z)
    (expected,) = torch.autograd.grad(bounded.sum(), z)
    torch.testing.assert_close(z.grad, expected)
    assert torch.equal(quantizer.lookup(indices), latent.detach())
    assert not [name for name, parameter in quantizer.named_parameters() if parameter.requires_grad]


def test_every_finite_scalar_can_be_reached():
    quantizer = build_quantizer(240, 3, grid=(8, 6, 5))
    z = 3 * torch.randn(40, 3, 32, 32, generator=generator())
    assert len(quantizer(z).indices.unique()) == 240
    rounded = torch.round(quantizer.bounded(z) * torch.tensor([4, 3, 2])[:, None, None]) / torch.tensor([4, 3, 2])[:, None, None]
    torch.testing.assert_close(quantizer(z).latent, rounded)


def test_levels_choose_the_quantiser_and_its_keys():
    assert list(build_quantizer(8, 4).state_dict()) == ["embedding.weight"]
    assert list(build_quantizer(8, 4, levels=2).state_dict()) == [f"levels.{level}.embedding.weight" for level in range(2)]
    assert [book.weight.shape for book in build_quantizer(8, 4, levels=3).codebooks] == 3 * [(8, 4)]


def test_legacy_residual_exchanges_the_weights_of_every_level():
    """Two levels of one code: z = 1, codes 3 and -3: the terms are (1-3)² = 4 and (-2+3)² = 1, commitment 1, codebook 0.25."""
    for legacy, expected in ((False, 1.25 * 5), (True, 1.25 * 5)):
        quantizer = build_quantizer(1, 1, levels=2, legacy=legacy)
        for book, value in zip(quantizer.codebooks, (3.0, -3.0), strict=True):
            book.weight.data.fill_(value)
        z = torch.ones(1, 1, 1, 1, requires_grad=True)
        loss = quantizer(z).loss
        loss.backward()
        assert loss.item() == expected
        assert z.grad.item() == (1.0 if legacy else 0.25) * (2 * (1 - 3) + 2 * (-2 + 3))


def residual():
    quantizer = ResidualVectorQuantizer(3, 16, 4)
    for i, level in enumerate(quantizer.levels):
        torch.nn.init.normal_(level.embedding.weight, std=0.5**i, generator=generator(i))
    return quantizer


def test_residual_levels_add_up():
    quantizer = residual()
    z = torch.randn(2, 4, 3, 5, generator=generator(9), requires_grad=True)
    latent, _, indices = quantizer(z)
    assert indices.shape == (2, 3, 5, 3)
    torch.testing.assert_close(latent, quantizer.lookup(indices))
    errors = [(quantizer.lookup(indices[..., :n]) - z).square().mean().item() for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    latent.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_a_share_of_slices_ends_after_fewer_levels_in_training():
    quantizer = build_quantizer(n_embed=8, embed_dim=3, levels=3, fewer=0.5)
    z = torch.randn(200, 3, 2, 2)
    made = quantizer(z)
    sums = torch.stack([quantizer.lookup(made.indices[..., :levels]) for levels in (1, 2, 3)])
    ends = (sums - made.latent).abs().amax(dim=(2, 3, 4)).argmin(dim=0)  # (200,)
    torch.testing.assert_close(made.latent, sums[ends, torch.arange(200)])
    counts = torch.bincount(ends, minlength=3)
    assert counts[2] in range(75, 126) and min(counts[0], counts[1]) > 30
    torch.testing.assert_close(quantizer.eval()(z).latent, sums[2])


def test_residual_of_one_level_is_the_plain_quantiser():
    plain, one = VectorQuantizer(16, 4), ResidualVectorQuantizer(1, 16, 4)
    one.levels[0].load_state_dict(plain.state_dict())
    z = torch.randn(2, 4, 3, 5)
    for a, b in zip(plain(z), one(z), strict=True):
        torch.testing.assert_close(a, b.squeeze(-1) if b.dtype == torch.int64 else b)


def test_residual_loss_reaches_every_level():
    quantizer = residual()
    quantizer(torch.randn(2, 4, 8, 8)).loss.backward()
    assert all(level.embedding.weight.grad.abs().sum() > 0 for level in quantizer.levels)


def test_residual_refuses_indices_of_more_levels():
    with pytest.raises(ValueError, match="indices have 4 levels, the codebook has 3"):
        residual().lookup(torch.zeros(1, 2, 2, 4, dtype=torch.int64))


def test_kmeans_finds_separated_clusters():
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (truth[:, None] + 0.1 * torch.randn(4, 50, 2, generator=generator())).flatten(0, 1)
    centres = kmeans(points, 4, generator(3))
    order = nearest_code(truth, centres)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(centres[order], points.view(4, 50, 2).mean(dim=1), rtol=0, atol=1e-4)


def test_kmeans_depends_on_nothing_but_vectors_and_seed():
    points = torch.randn(600, 4, generator=generator())
    first = kmeans(points, 32, generator(5))
    torch.rand(7)
    assert torch.equal(first, kmeans(points, 32, generator(5)))
    assert not torch.equal(first, kmeans(points, 32, generator(6)))


def test_kmeans_leaves_no_cluster_empty():
    points = torch.cat([torch.zeros(500, 2), torch.randn(60, 2, generator=generator())])
    centres = kmeans(points, 30, generator(1))
    assert codes_used(torch.bincount(nearest_code(points, centres), minlength=30)) == 30


def test_kmeans_of_constant_vectors_is_finite():
    assert torch.equal(kmeans(torch.full((50, 3), 0.5), 8, generator()), torch.full((8, 3), 0.5))


def test_kmeans_refuses_fewer_vectors_than_centres():
    with pytest.raises(ValueError, match="5 vectors cannot make 6 centres"):
        kmeans(torch.zeros(5, 2), 6)


def test_usage_by_hand():
    counts = torch.tensor([[4, 4, 0, 0], [1, 1, 1, 13], [0, 0, 0, 0]])
    assert codes_used(counts).tolist() == [2, 4, 0]
    entropy = -(3 / 16 * math.log(1 / 16) + 13 / 16 * math.log(13 / 16))
    assert perplexity(counts).tolist() == pytest.approx([2.0, math.exp(entropy), 0.0])


def test_initialisation_uses_all_codes():
    quantizer, revival = VectorQuantizer(32, 4), CodebookLife(32)
    z = torch.randn(5, 4, 8, 8, generator=generator())
    assert codes_used(torch.bincount(quantizer(z).indices.flatten(), minlength=32)) < 32
    revival.initialise(quantizer, to_vectors(z), generator(1))
    counts = revival.observe(quantizer(z).indices)
    assert counts.shape == (1, 32)
    assert codes_used(counts).item() == 32
    assert bool(revival.initialised)


def test_initialisation_refuses_too_few_vectors():
    with pytest.raises(ValueError, match="319 encoder vectors are too few to initialise 32 codes; at least 320"):
        CodebookLife(32).initialise(VectorQuantizer(32, 4), torch.zeros(319, 4))


def test_residual_initialisation_lowers_the_error_level_by_level():
    quantizer, revival = ResidualVectorQuantizer(2, 16, 4), CodebookLife(16, levels=2)
    z = torch.randn(3, 4, 8, 8, generator=generator())
    revival.initialise(quantizer, to_vectors(z), generator(1))
    indices = quantizer(z).indices
    errors = [(quantizer.lookup(indices[..., :n]) - z).square().mean().item() for n in (1, 2)]
    assert errors[1] < 0.6 * errors[0] < 0.6
    assert codes_used(revival.observe(indices)).tolist() == [16, 16]


def test_revival_replaces_exactly_the_unused_codes():
    quantizer, revival = VectorQuantizer(4, 2), CodebookLife(4, revive_after=3)
    before = quantizer.embedding.weight.detach().clone()
    vectors = torch.arange(20.0).view(10, 2) + 100
    chosen = [[0, 1, 2], [0, 1, 3], [0, 1, 1], [0, 1, 0]]  # code 2 goes unused at steps 2, 3 and 4
    replaced = []
    for codes in chosen:
        revival.observe(torch.tensor(codes).view(1, 1, 3))
        replaced.append(revival.revive(quantizer, vectors, generator()))
    after = quantizer.embedding.weight.detach()
    assert replaced == [0, 0, 0, 1]
    assert revival.unused_steps.tolist() == [[0, 0, 0, 2]]
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert bool((vectors == after[2]).all(dim=1).any())


def test_revival_with_fewer_vectors_than_unused_codes_waits_with_the_rest():
    quantizer, revival = VectorQuantizer(4, 2), CodebookLife(4, revive_after=1)
    revival.observe(torch.zeros(1, 1, 1, dtype=torch.int64))
    assert revival.revive(quantizer, torch.ones(2, 2), generator()) == 2
    assert revival.unused_steps.tolist() == [[0, 0, 0, 1]]


def test_revival_of_zero_never_replaces():
    quantizer, revival = VectorQuantizer(4, 2), CodebookLife(4, revive_after=0)
    revival.observe(torch.zeros(1, 1, 1, dtype=torch.int64))
    assert revival.revive(quantizer, torch.ones(9, 2)) == 0


def test_residual_revival_draws_each_level_from_its_own_residual():
    quantizer, revival = residual(), CodebookLife(16, levels=3, revive_after=1)
    first = quantizer.levels[0].embedding.weight.detach().clone()
    counts_none_of_level_1 = torch.stack([torch.arange(16), torch.zeros(16, dtype=torch.int64), torch.arange(16)], dim=-1)
    revival.observe(counts_none_of_level_1.view(1, 4, 4, 3))
    vectors = torch.randn(200, 4, generator=generator(4))
    assert revival.revive(quantizer, vectors, generator()) == 15
    assert torch.equal(quantizer.levels[0].embedding.weight, first)
    rest = vectors - first[nearest_code(vectors, first)]
    revived = quantizer.levels[1].embedding.weight.detach()[1:]
    assert (revived[:, None] == rest).all(dim=2).any(dim=1).all()


def test_state_survives_a_checkpoint():
    def steps(quantizer, revival, first, last):
        for step in range(first, last):
            vectors = torch.randn(64, 4, generator=generator(100 + step)) * 0.1
            revival.observe(quantizer.nearest(vectors.view(64, 4, 1, 1)))
            revival.revive(quantizer, vectors, generator(step))

    whole, resumed = ((VectorQuantizer(32, 4), CodebookLife(32, revive_after=2)) for _ in range(2))
    resumed[0].load_state_dict(whole[0].state_dict())
    steps(*resumed, 0, 3)
    states = [module.state_dict() for module in resumed]
    resumed = VectorQuantizer(32, 4), CodebookLife(32, revive_after=2)
    for module, state in zip(resumed, states, strict=True):
        module.load_state_dict(state)
    steps(*resumed, 3, 7)
    start = whole[0].embedding.weight.detach().clone()
    steps(*whole, 0, 7)
    assert not torch.equal(start, whole[0].embedding.weight)
    assert torch.equal(whole[0].embedding.weight, resumed[0].embedding.weight)
    assert torch.equal(whole[1].unused_steps, resumed[1].unused_steps)


def _train_on_one_rank(rank, address, results):
    """Other vectors, another number of them, another seed and another start on every rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    quantizer, revival = VectorQuantizer(8, 2), CodebookLife(8, revive_after=1)
    vectors = torch.randn(50 + rank, 2, generator=generator(rank)) + 10 * rank
    revival.initialise(quantizer, vectors, generator(rank))
    initial = quantizer.embedding.weight.detach().clone()
    counts = revival.observe(torch.full((1, 1, 5), rank))  # rank 0 uses code 0, rank 1 code 1
    replaced = revival.revive(quantizer, vectors, generator(rank))
    torch.save((initial, counts, replaced, quantizer.state_dict(), revival.state_dict()), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_keep_one_codebook(tmp_path):
    assert together(_train_on_one_rank, f"file://{tmp_path}/store", str(tmp_path)) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    initial, counts, replaced, state, _ = first
    assert counts.tolist() == [[5, 5, 0, 0, 0, 0, 0, 0]]
    assert replaced == second[2] == 6
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert initial[:, 0].min() < 5 < initial[:, 0].max()  # centres from the vectors of both ranks
    torch.testing.assert_close(state["embedding.weight"][:2], initial[:2], rtol=0, atol=0)


def test_the_constants_of_a_grid_move_with_it_and_are_not_saved():
    quantizer = build_quantizer(1, 2, grid=(4, 5))
    assert list(quantizer.state_dict()) == ["embedding.weight"]
    assert {buffer.device.type for buffer in quantizer.to("meta").buffers()} == {"meta"}
