"""What is different between two points, or between two sweeps.

``results``  files to results: a point's JSON, a sweep's table
``points``   two points: configurations, and every term of the breakdown
``sweeps``   two tables: points that both have, and how they changed
``report``   text and JSON
``plots``    waterfall of two points, changes of two sweeps
``command``  ``deepflow compare``
"""
