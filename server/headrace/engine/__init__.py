"""The asyncio shell around the pipeline: events in, decisions out."""
