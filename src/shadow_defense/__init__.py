"""Shadow Defense: protect federated learning on medical images against gradient inversion."""

__version__ = "0.1.0"
