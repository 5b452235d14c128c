"""The embedded network simulator: ASTRA-sim's timing rules, and options that go beyond them.

``graph.py`` holds what goes in and comes out; ``simulate.py`` is the entrance.
"""
