"""What leaves the house: lineage, cards, and the upload to a hub."""
