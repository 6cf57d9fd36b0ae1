"""Real text to batches: sources, duplicates, split, token shards, packing, resumable loaders."""
