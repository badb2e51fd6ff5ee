"""Coordinates: the names and units of the channels of fields, and the places of their rows and columns."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Names, values and units of a file of fields, with which arrays can be written back as one; plain values."""

    channels: tuple[str, ...]
    """names of the channels, those of a target first"""
    channel_units: tuple[str, ...]
    """unit of each channel; empty if it is unknown"""
    names: tuple[str, str]
    """names of the axes, from top to bottom and from left to right"""
    values: tuple[tuple[float, ...], tuple[float, ...]]
    """coordinate of each row, and of each column"""
    units: tuple[str, str]
    """unit of each axis; empty if it is unknown"""

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.channel_units):
            raise ValueError(f"channels={self.channels} and channel_units={self.channel_units} differ in length")

    def of(self, start: int, stop: int) -> "Coordinates":
        """These, with the names and units of some of the channels."""
        rows = slice(start, stop)
        return replace(self, channels=self.channels[rows], channel_units=self.channel_units[rows])

    def beside(self, channels: "Coordinates") -> "Coordinates":
        """These, with the names and units of further channels."""
        return replace(
            self,
            channels=(*self.channels, *channels.channels),
            channel_units=(*self.channel_units, *channels.channel_units),
        )
