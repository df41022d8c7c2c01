-- Balances beyond a bigint. An amount of one event is at most 1e18 nano, but a balance is a sum over all of them: ten
-- credits of that size overflow a bigint, which stopped the projection. numeric(38, 0) is 20 digits wider and exact;
-- the projection writes an account once for a slice, so that its arithmetic is slower does not show.

alter table derived.accounts alter column balance_nano type numeric(38, 0);

-- state.admit() reads the wider balance since 0006, which makes it anew.
