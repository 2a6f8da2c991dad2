"""Each file measures one claim, ours beside the raw limit and the rival, in the same rounds."""
