"""The operations of the state machine, one in each module: ``operation(txn, context, request) -> reply``.

Values in, values out; no clock, no chance. The one rule: an operation raises a ShoalError only before its
first write, so a refused operation has changed nothing and nothing has to be taken back. (DamagedRecord is
the exception: it can come from any read, and ends the whole transaction.)
"""
