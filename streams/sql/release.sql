select state.release($1::uuid[], $2::text[], $3::bigint[])
