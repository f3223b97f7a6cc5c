"""What a recipe would take on a TPU slice that is not there: compiled by the real TPU compiler, not measured."""
