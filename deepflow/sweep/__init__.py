"""From a sweep file to points, rows, tables and plots.

``expand``    sweep YAML to axes
``points``    axes to points and shards
``schema``    the keys of a sweep file
``settings``  one key with one value
``where``     the filter language of sweeps and plots
``identity``  readable ids, digests of meaning, stable assignment to shards
``quantity``  numbers for people
``worker``    warm processes for jobs
``files``     writing results
``run``       predict points
``tables``    rows to Parquet and CSV, with types, units and metadata
``plots``     the figures a sweep asks for: their rows and captions
``figures``   drawing them
``labels``    words, units and ticks of figures
"""
