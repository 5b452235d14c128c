"""Architecture search: find the machine instead of judging one.

``schema``      the keys of a search file
``space``       search YAML to cases, design vectors and hardware keys
``objectives``  what is minimised, maximised and bounded
``evaluate``    a design vector to a prediction and its merit
``descent``     the search of the DeepFlow research code, to compare with
``gradient``    the default: exponentiated gradient with line search
``evolution``   global: differential evolution and annealing of SciPy, fronts by pymoo's NSGA-II
``run``         one optimiser on one case, with progress; goes on where it stopped
``tables``      evaluations to Parquet: all, best designs, convergence, Pareto fronts
``plots``       the figures of a search
``command``     ``deepflow search``
"""
