"""The postfuse network against what is known of it in closed form."""

import pytest
import torch
from palimpsest.nodes.subject.postfuse import Postfuse

pytestmark = pytest.mark.unit


def postfuse(width: int = 16) -> Postfuse:
    torch.manual_seed(0)
    return Postfuse(width, torch.float32, torch.device("cpu"), torch.nn)


def test_the_published_width_has_the_published_number_of_parameters():
    network = postfuse(768)
    assert sum(weight.numel() for weight in network.parameters()) == 2_958_336
    assert len(network.state_dict()) == 14
    assert {name: tuple(value.shape) for name, value in network.state_dict().items() if "fc" in name and "weight" in name} == {
        "mlp1.fc1.weight": (768, 1536), "mlp1.fc2.weight": (768, 768), "mlp2.fc1.weight": (768, 768), "mlp2.fc2.weight": (768, 768),
    }  # fmt: skip


def test_without_its_mlps_it_normalises_the_text():
    network = postfuse()
    for mlp in (network.mlp1, network.mlp2):
        mlp.fc2.weight.data.zero_()
        mlp.fc2.bias.data.zero_()
    text, picture = torch.randn(2, 3, 16)
    assert torch.equal(network(text, picture), network.layer_norm(text))


def test_each_row_is_its_own():
    network = postfuse()
    text, picture = torch.randn(2, 4, 16)
    order = torch.tensor([2, 0, 3, 1])
    together = network(text, picture)
    assert (together[order] - network(text[order], picture[order])).abs().max() < 1e-6
    assert (together[1:2] - network(text[1:2], picture[1:2])).abs().max() < 1e-6
    assert (together - network(text, picture[order])).abs().max() > 0.1
