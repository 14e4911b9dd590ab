"""The Open Cybersecurity Schema Framework, as far as Tidegate speaks it: calls are API Activity (6003), conclusions of
the detector Detection Findings (2004). Pure; `terms.py` holds what both have in common.
"""
