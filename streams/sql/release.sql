select state.book_ends($1::uuid[], $2::text[], $3::bigint[])
