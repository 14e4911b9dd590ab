"""Makes the service from settings: the one place that constructs. Used by `tidegate detector` and by `tidegate up`."""

from tidegate_detector.detector import Detector, create_detector

__all__ = ["Detector", "create_detector", "open_detector"]

open_detector = create_detector
"""The name that every service's opening has in its `wiring` module."""
