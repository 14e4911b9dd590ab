"""Content inspection: rules of a bundle, the scanner over arguments and results, and content fingerprints."""
