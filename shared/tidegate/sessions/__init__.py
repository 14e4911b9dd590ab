"""Sessions, as edges share them. `port.py` says what a store promises; `opening.py` chooses one."""
