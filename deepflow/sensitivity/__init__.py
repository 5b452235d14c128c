"""Which hardware parameters decide a prediction, and by how much.

``analysis``  one point: elasticities and large changes, by finite differences
``report``    what is said of it: text, columns, files
``sweeps``    the points of a sweep: shards, one table, its figures
``plots``     tornado of a point, heat map of the parameter that matters most
``command``   ``deepflow sensitivity``
"""
