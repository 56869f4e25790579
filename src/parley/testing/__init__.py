"""The kit for the tests of Parley's clients: factories, pytest fixtures, a fake Parley, and a faulty upstream.

It does not need the server. The extra `parley[testing]` installs pytest and polyfactory.
"""
