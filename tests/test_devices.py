import pytest
import torch

from treadle.cores import usable_cores
from treadle.devices import choose_device, computes_bfloat16, prepare_cpu
from treadle.errors import ConfigError
from treadle.policies import load_policy


def test_a_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("cuda", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, cuda, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_device("auto").type == found


@pytest.mark.parametrize("name", ["tpu9", "", "cuda:99", "meta", "hpu"])
def test_a_device_that_cannot_be_used_is_named(name):
    with pytest.raises(ConfigError, match=rf"device '{name}' cannot be used .*choose auto, cpu"):
        choose_device(name)


@pytest.mark.parametrize("device", ["cuda:99", "tpu9", "meta", "", None, 3.5])
def test_a_policy_is_loaded_with_the_same_words(device, tmp_path):
    with pytest.raises(ConfigError, match=r"device .* cannot be used .*choose auto, cpu, cuda or cuda:N"):
        load_policy(tmp_path, device=device)


def test_threads():
    before = torch.get_num_threads()
    try:
        prepare_cpu(2)
        assert torch.get_num_threads() == 2
        prepare_cpu(0)
        assert torch.get_num_threads() == len(usable_cores())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it(monkeypatch, capabilities, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_bfloat16(torch.device("cpu")) is found
