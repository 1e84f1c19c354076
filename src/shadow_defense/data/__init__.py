"""Images: their sources, their preparation, and how they are dealt to clients."""

from shadow_defense.data.build import load_dataset
from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation, Parts
from shadow_defense.data.settings import DataSettings, SplitSettings
from shadow_defense.data.source import Source
from shadow_defense.data.sources import SOURCES
from shadow_defense.data.summary import summarise

__all__ = [
    "SOURCES",
    "ClientData",
    "DataSettings",
    "FederatedDataset",
    "ImageSet",
    "Normalisation",
    "Parts",
    "Source",
    "SplitSettings",
    "load_dataset",
    "summarise",
]
