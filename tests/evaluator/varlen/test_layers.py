import pytest
import torch

from xsweep.evaluator.varlen import layers
from xsweep.evaluator.varlen.layers import outer_product, prepare


@pytest.fixture(params=["blocked weights", "plain weights"], autouse=True)
def weights_layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs both layouts on every CPU, whichever is faster there."""
    is_blocked = request.param == "blocked weights"
    if is_blocked and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(layers, "blocks_weights", lambda: is_blocked)


@pytest.mark.parametrize("rows", [1, 7, 1024])
@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_prepared_layer_equals_the_layer_and_its_activation(
    rows: int, with_gelu: bool, with_bias: bool
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80, bias=with_bias)
    states = torch.randn(rows, 48)
    with torch.inference_mode():
        expected = layer(states)
        if with_gelu:
            expected = torch.nn.functional.gelu(expected)
        weights = layer.weight, layer.bias
        found = prepare(*weights, torch.float32, with_gelu=with_gelu)(states)
        rounded = prepare(*weights, torch.bfloat16, with_gelu=with_gelu)(states.bfloat16())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("rows", [1, 7, 255])
@pytest.mark.parametrize(("left", "right"), [(48, 80), (1, 48), (33, 1)])
def test_an_outer_product_equals_the_exact_sums(
    rows: int, left: int, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "has_wide_amd_units", lambda: True)
    torch.manual_seed(0)
    left_TA, right_TB = torch.randn(rows, left), torch.randn(rows, right)
    exact = left_TA.double().t() @ right_TB.double()
    torch.testing.assert_close(
        outer_product(left_TA, right_TB).double(), exact, atol=1e-4, rtol=1e-5
    )
    rounded = outer_product(left_TA.bfloat16(), right_TB.bfloat16())
    torch.testing.assert_close(rounded.double(), exact, atol=0.5, rtol=0.02)


@pytest.mark.parametrize("cpu", ["this CPU", "a CPU without bf16 units"])
def test_bf16_products_are_sums_of_exact_products_rounded_once(
    cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpu != "this CPU":
        monkeypatch.setattr(layers, "computed_in", lambda dtype, device: torch.float32)
    torch.manual_seed(0)
    weight, bias, states = (torch.randn(*shape).bfloat16() for shape in [(80, 48), (80,), (9, 48)])
    with torch.inference_mode():
        found = prepare(weight, bias, torch.bfloat16)(states)
        exact = states.double() @ weight.double().t() + bias.double()
    assert found.dtype == torch.bfloat16
    # Eight significant bits: half a step of rounding, and a little for the order of the sums.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)
