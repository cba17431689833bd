"""The metadata service: one replicated state machine over an ordered key-value store."""
