"""What did it look like? Data in, a matplotlib Figure out; nothing is computed here."""
