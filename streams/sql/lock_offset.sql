select next, last_sha256, chain, max_event_ms from derived.offsets where topic = $1 and partition = $2 for update
