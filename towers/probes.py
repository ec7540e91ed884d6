"""Sixteen fixed texts whose vectors travel with every release.

A reader recomputes them: base encoder, text template, head and weights are then proven to be those of the trainer.
"""

from typing import Final

PROBE_TEXTS: Final = (
    "quiet fridge",
    "double door refrigerator 300 litres frost free",
    "1 ton inverter ac only",
    "gaming laptop under 80000",
    "sasta double door fridge",
    "wireless earbuds with long battery",
    "Front load washing machine 7 kg. Appliances > Washing machines",
    "smart tv 55 inch 4k",
    "gift for grandmother",
    "running shoes",
    "usb c charger 65w",
    "red dress size m",
    "coffee grinder",
    "USB-C to HDMI adapter. Computers > Cables",
    "stand mixer 500 w",
    "",
)
