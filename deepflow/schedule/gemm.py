"""One matrix product on one device or over a grid of ranks, with its gradients if asked for.

Operators run one after another. Each of ``data`` replicas multiplies its own M rows, so the
work grows with their number; backward, they average the weight's gradient and update the
weight. Without replicas there is nobody to agree with, and gradients are where it ends.
"""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.model import GemmModel
from deepflow.cost.operators import OperatorCost, block_cost
from deepflow.hardware import Hardware
from deepflow.mapping.kernel import KernelMapping, map_kernels, shard_product
from deepflow.record import record
from deepflow.schedule.simulated import FLATTENED, machine_chain_time, simulated_mode
from deepflow.workload.operators import Block, Gemm


@record(frozen=True)
class GemmRun:
    """Costs on one rank: both passes, the reduction of the gradient, the update.

    ``footprint``: bytes of the rank's shards of A, B and C, and of their gradients.
    ``simulated_time``: seconds of all operators where the whole machine is simulated.
    """

    mapping: KernelMapping
    compute: tuple[OperatorCost, ...]
    reduction: tuple[OperatorCost, ...]
    update: tuple[OperatorCost, ...]
    footprint: float
    simulated_time: float | None = None


def run_gemm(hardware: Hardware, model: GemmModel) -> GemmRun:
    """Shards and costs the product; kernel parallelism is that of the hidden layers.

    A pipeline does not change it: the other stages hold other layers and are not counted.

    Raises:
        InfeasiblePoint: degrees contradict each other or the machine, or have no network.
    """
    mapping = map_kernels(hardware, {"gemm": "hidden"}, data_fills_machine=False)
    mapping = replace(mapping, pipeline=1)
    precision, split = hardware.config.sw_param.precision, mapping.splits["gemm"]
    whole = Block("gemm", (Gemm("gemm", model.M, model.K, model.N),))
    blocks = shard_product(whole, "gemm", split, precision)
    compute = blocks.forward.operators
    trains = model.backward and mapping.data > 1
    if model.backward:
        compute += blocks.backward.operators
    shard = next(item for item in blocks.forward.operators if isinstance(item, Gemm))
    weight_rows, weight_columns = split.weights(model.K, model.N)
    elements = shard.m * shard.k + weight_rows * weight_columns + shard.m * model.N
    run = GemmRun(
        mapping,
        block_cost(Block("gemm", compute), hardware, mapping.groups),
        block_cost(blocks.reduction, hardware, mapping.groups) if trains else (),
        block_cost(blocks.update, hardware, mapping.groups) if trains else (),
        float(elements * precision * (2 if model.backward else 1)),
    )
    if simulated_mode(hardware) != FLATTENED or mapping.num_devices == 1:
        return run
    distances = {"gemm.kp1": 1, "gemm.kp2": split.kp1, "data": mapping.kernel}
    time = machine_chain_time(
        (*run.compute, *run.reduction, *run.update),
        hardware,
        {name: (mapping.groups[name], distance) for name, distance in distances.items()},
        mapping.num_devices,
    )
    return replace(run, simulated_time=time)
