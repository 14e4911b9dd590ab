"""The log: the truth of the system. `port.py` is what services see; `opening.py` picks the adapter."""
