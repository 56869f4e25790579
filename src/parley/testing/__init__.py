"""The kit for the tests of Parley's clients: factories, pytest fixtures, a fake Parley, and an upstream with faults.

It needs no server: the extra `parley[testing]` brings pytest and polyfactory.
"""
