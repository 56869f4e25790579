"""The evaluation: asks the questions of a suite through the public API, and says whether the answers got worse."""
