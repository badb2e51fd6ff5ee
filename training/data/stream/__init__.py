"""Streaming: images decoded when they are needed, shard by shard."""
