# What the rules for sensitivities share: what a sweep asks for, and the files that it makes.


def get_plan(wildcards):
    """What a sweep asks to be found out of each point."""
    from deepflow.sensitivity.sweeps import wanted

    try:
        return wanted(get_sweep(wildcards.sweep)).plan
    except DeepFlowError as error:
        stop(error)


def plan_options(plan):
    """The options of ``deepflow sensitivity`` that describe a plan."""
    options = ["--objective", plan.objective, "--step", repr(100 * plan.step)]
    if plan.keys:
        options += ["--keys", *(f"hardware.{key}" for key in plan.keys)]
    return options


def get_analysed_shard(wildcards):
    """The shard of points to analyse that a target names."""
    from deepflow.sensitivity.sweeps import finer

    try:
        return finer(get_sweep(wildcards.sweep)).shard(wildcards.shard)
    except DeepFlowError as error:
        stop(error)


def gathered_sensitivities(wildcards):
    """What the table of sensitivities is made from: a file per shard, or per point."""
    from deepflow.sensitivity.sweeps import finer

    get_plan(wildcards)
    sweep = get_sweep(wildcards.sweep)
    folder = f"results/{sweep.name}/sensitivity"
    if sweep.sharded:
        return [f"{folder}/shards/{name}.parquet" for name in finer(sweep).shards]
    return [f"{folder}/points/{point.id}.json" for point in sweep.points()]


def get_figure(wildcards):
    """The figure of sensitivities that a target names."""
    from deepflow.sensitivity.sweeps import figure_of

    try:
        return figure_of(get_sweep(wildcards.sweep), wildcards.plot)
    except DeepFlowError as error:
        stop(error)
