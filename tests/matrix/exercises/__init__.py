"""What is done in every cell, by the part of the protocol that it is about."""
