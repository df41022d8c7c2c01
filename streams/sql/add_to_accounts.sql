-- Sorted by the caller: accounts are locked in the order of their primary key.
insert into derived.accounts as a (account, asset, partition, balance_nano, entries)
select * from unnest($1::text[], $2::text[], $3::int[], $4::numeric[], $5::bigint[])
on conflict (account, asset, partition)
do update set balance_nano = a.balance_nano + excluded.balance_nano, entries = a.entries + excluded.entries
