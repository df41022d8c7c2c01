select * from derived.requests where request_id = any ($1::uuid[]) and partition = $2
