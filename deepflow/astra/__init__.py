"""ASTRA-sim's files, its command line, and the runner of a real binary.

``trace`` reads and writes Chakra execution traces, ``files`` the other inputs and whole sets of
them, ``command`` is ``deepflow astra-sim``, and ``runner`` starts an ASTRA-sim that the user has
built. The simulator itself is ``deepflow.network``.
"""
