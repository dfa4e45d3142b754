"""`mull compare`: iterations, tokens and samples on one axis of cost."""
