# What the rules of searches share: which there are, their starts and figures.

from deepflow.search.command import RESULTS as SEARCHES


wildcard_constraints:
    search=r"[A-Za-z0-9_-][A-Za-z0-9._-]*",
    case=r"[A-Za-z0-9._+=-]+",
    start=r"\d+",
    figure=r"[a-z]+",


@lru_cache(maxsize=None)
def get_search(name):
    """The loaded search of this name; one that no target needs is never read."""
    from deepflow.search.space import load_search

    files = {path.stem: path for path in Path("searches").glob("*.yaml")}
    if name not in files:
        hint = did_you_mean(name, files)
        stop(f"no search is called {name!r}{hint} (known: {', '.join(sorted(files))})")
    try:
        return load_search(files[name])
    except DeepFlowError as error:
        stop(str(error))


def search_starts(wildcards):
    """The tables of all starts of a search."""
    from deepflow.search.tables import run_file

    search = get_search(wildcards.search)
    return [
        f"{SEARCHES}/{search.name}/{run_file(search, case, start)}"
        for case in search.cases.values()
        for start in range(search.optimizer.starts)
    ]


def search_figures(wildcards):
    """The figures of a search."""
    from deepflow.search.plots import plot_names

    names = plot_names(get_search(wildcards.search))
    return [f"{SEARCHES}/{wildcards.search}/plots/{name}.png" for name in names]


def start_digest(wildcards):
    """Fingerprint of one start of a case."""
    search = get_search(wildcards.search)
    try:
        return search.run_digest(search.case(wildcards.case), int(wildcards.start))
    except DeepFlowError as error:
        stop(error)


def step_of(wildcards, *options):
    """The command that does a step behind the starts."""
    results = ["--results", f"{SEARCHES}/{wildcards.search}"]
    return ["search", get_search(wildcards.search).file, *results, *options]
