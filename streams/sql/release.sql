select state.release($1::uuid[], $2::bigint[])
