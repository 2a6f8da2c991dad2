"""Whether folding the same events twice gives the same: what read models are built on."""
