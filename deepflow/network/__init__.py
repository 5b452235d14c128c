"""The embedded network simulator: ASTRA-sim's timing rules, and options that go beyond them.

``simulate.py`` is the entrance and ``graph.py`` what goes in and comes out. Then, from the bottom:

- ``events.py``: the clock; ``topology.py``: routes and links; ``transport.py``: messages, by a
  delay or through queues; ``algorithms.py``: what collectives send; ``collective.py``: chunks and
  their queues; ``rank.py``: nodes and lanes; ``event_model.py``: all of it as one simulation;
  ``checks.py``: what is wrong with an input.
- ``closed_forms.py``: phases without messages; ``timers.py``, ``ranking.py``: phases as timers,
  and the order of ranks; ``symmetric.py``: one rank for all; ``program.py``, ``lockstep.py``: one
  rank for each kind of rank, with nodes as events. These give the event model's result or leave
  it to it.
"""
