"""``explain`` tells where the time goes, in agreement with the prediction."""

import re

from deepflow.config import load_model_config
from deepflow.explain import explain
from deepflow.hardware import load_hardware

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"


def test_training_shares_add_up_and_operators_name_their_bound():
    hardware = load_hardware(
        H100,
        {"system_hierarchy.num_nodes": 8, "parallelism.tensor": 8, "parallelism.pipeline": 2},
    )
    text = explain(hardware, load_model_config("configs/model-config/Llama2-70B.yaml"))
    shares = text.split("Where the step goes")[1].split("\n\n")[0]
    total = sum(float(share) for share in re.findall(r"([\d.]+) %", shares))
    assert abs(total - 100) < 0.5
    assert re.search(r"feed_forward_up\s.*compute", text)
    assert re.search(r"attention_norm\s.*DRAM", text)
    assert re.search(r"qkv_projection.gather\s.*tensor network", text)
    assert "Memory of the fullest device" in text and "optimizer" in text


def test_a_thin_gemm_is_bound_by_memory_and_a_cube_by_compute():
    hardware = load_hardware(H100)
    for shape, bound in (((1, 8192, 8192), "DRAM"), ((8192, 8192, 8192), "compute")):
        overrides = dict(zip(("M", "K", "N"), shape, strict=True))
        model = load_model_config("configs/model-config/GEMM.yaml", overrides)
        assert f"bound by {bound}" in explain(hardware, model)
