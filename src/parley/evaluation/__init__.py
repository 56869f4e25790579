"""The evaluation: asks a suite of cases through the public wire, and says whether the answers got worse."""
