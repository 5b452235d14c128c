"""The names that other programs build on."""

import subprocess
import sys

import pytest

PROGRAM = """
import deepflow
hardware = deepflow.load_hardware(
    "configs/hardware-config/nvidia_h100_sxm_80gb.yaml", {"parallelism.tensor": 8}
)
model = deepflow.load_model("configs/model-config/Llama2-7B.yaml", {"seq_len": 2048})
prediction = deepflow.predict(hardware, model)
assert prediction.time_s > 0 and prediction.tensor_parallel == 8
assert deepflow.predict(hardware, model).time_s == prediction.time_s
assert hardware.accelerator.core.peak_flops > 9e14
assert [level.name for level in hardware.accelerator.memory][-1] == "DRAM"
"""


def test_load_and_predict_from_the_package():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_a_prediction_does_not_load_table_or_plot_libraries():
    heavy = "{'pandas', 'pyarrow', 'seaborn', 'matplotlib', 'snakemake'}"
    check = PROGRAM + f"\nimport sys\nassert not {heavy} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_unknown_names_are_attribute_errors():
    import deepflow

    with pytest.raises(AttributeError, match="no attribute 'predcit'"):
        deepflow.predcit  # noqa: B018
