"""Owns the canaries: what is put into everything that must not come out again."""

CANARY = "canary-5Xq9-text"
CANARY_KEY = "sk-canary-5Xq9-key"
CANARIES = (CANARY, CANARY_KEY)
