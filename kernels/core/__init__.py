"""What every operator is made of: its record, launches and their replay, the chips, pixels on the device."""
