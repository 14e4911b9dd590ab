"""The policy service: examines, signs, releases, rolls back bundles; quarantines; knows what edges run.

Reading order: `wiring.py` (what is made), `service.py` (its life), `state.py` (the fold that is its whole state),
`publish.py` and `quarantine.py` (what it does), `api.py` (how it is asked).
"""
