update derived.offsets set next = $3, last_sha256 = $4, chain = $5, max_event_ms = $6, rejected = rejected + $7
where topic = $1 and partition = $2
