"""The language all Tidegate services speak: events, the log, bundles, identity, sessions, settings. It knows no
service.
"""

__version__ = "0.1.0"
