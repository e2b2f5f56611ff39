import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

from gat.gan.networks import Discriminator, Generator, sincos_pos_embed
from gat.gan.noise import perturb
from gat.official import load_discriminator, load_generator
from gat.sizes import SIZES
from gat.study.cost import discriminator_cost, generator_cost

# The paper's table: millions of parameters of G and D, GMACs of G at patch 2, 4, 8, GMACs of D at patch 2.
TABLE = {
    "S": (29.4, 39.2, (6.06, 1.41, 0.36), 7.77),
    "B": (116.8, 104.7, (23.0, 5.56, 1.41), 24.96),
    "L": (408.7, 323.0, (80.6, 19.65, 4.97), 82.89),
    "XL": (602.3, 467.7, (118.6, 28.98, 7.33), 120.98),
}
TINY = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 5}


def within(value: float, printed: float) -> bool:
    """Half a percent, or what rounding to two decimals hides."""
    return abs(value - printed) <= max(0.005 * printed, 0.005)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_multiply_adds_are_the_papers(name):
    size, (params_g, params_d, gmacs, gmacs_d) = SIZES[name]._asdict(), TABLE[name]
    costs = [generator_cost(size | {"patch": patch}) for patch in ((2, 4, 8) if name == "S" else (2,))]
    assert all(within(cost.gmacs, printed) for cost, printed in zip(costs, gmacs, strict=False))
    assert within(costs[0].params / 1e6, params_g)
    cost = discriminator_cost(size | {"patch": 2, "repa_dim": 768})
    assert within(cost.params / 1e6, params_d)
    assert within(cost.gmacs, gmacs_d)


@pytest.fixture(scope="module")
def release():
    """Weights, inputs and answers recorded from the paper's release, tiny and randomized."""
    with safe_open(ROOT / "tests/data/release.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def section(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return section


def assert_near(got, want):
    error = (got.reshape(want.shape) - want).norm() / want.norm()
    assert error < 1e-4


@torch.no_grad()
def test_generator_answers_as_the_release(release):
    generator = load_generator(release("generator."), heads=2)
    given, want = release("in."), release("out.")
    assert_near(generator(given["z"], given["y"], return_levels=True), want["levels"])
    assert_near(generator(given["z"], given["y"]), want["image"])
    assert_near(generator(given["z"], given["y"], truncation_psi=0.5), want["image_psi_0.5"])
    assert_near(generator(given["z"], given["y"], guidance_scale=1.7), want["image_guidance_1.7"])


@torch.no_grad()
def test_discriminator_answers_as_the_release(release):
    discriminator = load_discriminator(release("discriminator."), heads=2)
    given, want = release("in."), release("out.")
    logits, (cls, patches) = discriminator(given["levels"], given["y"], return_features=True)
    assert_near(logits, want["logits"])
    assert_near(cls, want["feat_cls"])
    assert_near(patches, want["feat_patch"])


def test_noise_is_the_releases(release):
    given = release("in.")
    assert_near(perturb(given["noise_x"], given["noise"]), release("out.")["noised"])


@torch.no_grad()
def test_activation_checkpointing_changes_nothing_but_memory():
    torch.manual_seed(0)
    generator = Generator(**TINY)
    z, labels = torch.randn(3, 64), torch.tensor([0, 1, 4])
    gradients = []
    for checkpointed in (False, True):
        generator.activation_checkpointing = checkpointed
        with torch.enable_grad():
            generator.zero_grad()
            generator(z, labels).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_networks_come_back_from_disk_as_they_were(tmp_path):
    torch.manual_seed(0)
    for network in (Generator(**TINY), Discriminator(**TINY, cmap_dim=24, repa_dim=6)):
        folder = tmp_path / type(network).__name__
        network.save_pretrained(folder)
        again = type(network).from_pretrained(folder)
        assert dict(again.config)["width"] == 16
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name
        assert torch.equal(network.pos_embed, again.pos_embed)
        assert torch.equal(network.rope, again.rope)


def test_position_table_is_the_closed_form():
    (table,) = sincos_pos_embed(3, 8)
    row, column = 2, 1
    angles = torch.tensor([1.0, 0.01])
    expected = torch.cat([(column * angles).sin(), (column * angles).cos(), (row * angles).sin(), (row * angles).cos()])
    torch.testing.assert_close(table[row * 3 + column], expected)


def test_logit_and_gradients_do_not_depend_on_what_the_last_block_leaves_out():
    """Without features the last block computes [cls] alone, with them every token."""
    torch.manual_seed(0)
    discriminator = Discriminator(**TINY, cmap_dim=24, repa_dim=6)
    levels, labels = torch.randn(4, 6, 4, 8, 8), torch.tensor([0, 1, 4])
    gradients, logits = [], []
    for features in (False, True):
        discriminator.zero_grad()
        answer = discriminator(levels, labels, return_features=features)
        logits.append(answer[0] if features else answer)
        logits[-1].square().sum().backward()
        body = [p for name, p in discriminator.named_parameters() if not name.startswith("proj.")]
        gradients.append(torch.cat([p.grad.flatten() for p in body if p.grad is not None]))
    torch.testing.assert_close(*logits)
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() > 0


def test_last_block_works_on_cls_alone_where_no_features_are_asked_for():
    small = TINY | {"cmap_dim": 4, "projector_dim": 1}
    plain, with_head = (discriminator_cost(small | {"repa_dim": dim}).gmacs for dim in (None, 1))
    assert with_head > 1.1 * plain


@torch.no_grad()
def test_classes_are_embedded_alike_one_by_one_all_together_and_beforehand():
    discriminator = Discriminator(**TINY, cmap_dim=24)
    labels = torch.tensor([3, 0, 3, 1, 4, 2, 2])
    together = discriminator.y_embedder(labels)  # more samples than classes: each class once
    torch.testing.assert_close(together, torch.cat([discriminator.y_embedder(label[None]) for label in labels]))
    levels = torch.randn(4, 7, 4, 8, 8)
    assert torch.equal(discriminator(levels, together), discriminator(levels, labels))
    assert not torch.equal(discriminator(levels, together.flip(0)), discriminator(levels, labels))


def test_features_need_a_head():
    discriminator = Discriminator(**TINY, cmap_dim=24)
    with pytest.raises(ValueError, match="repa_dim"):
        discriminator(torch.zeros(4, 1, 4, 8, 8), torch.tensor([0]), return_features=True)
