-- A rebuild of schema derived swaps it under a running network: what admission holds must be right for the new books in
-- the same transaction. And errata, which say of single records of the log that nobody can read them.

-- Makes admissions agree with derived.requests: at the swap of a rebuild, which holds the offsets, and when admission is
-- opened (C7). What the projection has not committed is as if it had not begun: it waits for us at the next lock, and its
-- release comes behind. Requests that are open in the log and have no admission get hold and slot again; those with
-- one keep it as it is; an admission of a request that has ended there is removed, for the release that did not find it;
-- every counter is counted anew. Returns how many were made again.
create function state.make_admissions_right() returns int
language plpgsql as $$
declare
    restored int;
begin
    -- Nobody admits now; settle() and release() wait for us, at their first row lock: a weaker mode would let them lock
    -- a row of keys and then wait for us at the next table, while we wait for that row.
    lock table state.keys, state.wallets, state.sandbox_days, state.admissions in exclusive mode;
    delete from state.admissions a using derived.requests r
        where r.request_id = a.request_id and r.wallet_id = a.wallet_id and r.status <> 'open';
    insert into state.admissions (request_id, key_id, wallet_id, owner_id, payer, asset, hold_nano, hold_nano_usd,
                                  cap_day, rate_nano_usd, owner, node_id, model, lane, lane_offset)
        select r.request_id, r.key_id, r.wallet_id, w.owner_id, r.payer, r.asset, r.hold_nano,
               case when r.cap_day is null then 0 else state.to_nano_usd(r.hold_nano, r.rate_nano_usd) end,
               r.cap_day, r.rate_nano_usd, r.owner, '', r.model, '', 0
        from derived.requests r join state.wallets w using (wallet_id)
        where r.status = 'open'
        on conflict do nothing;
    get diagnostics restored = row_count;
    update state.keys k set open_requests = n.open_requests
        from (select k2.key_id, count(a.request_id) as open_requests from state.keys k2
              left join state.admissions a on a.key_id = k2.key_id and a.slot group by k2.key_id) n
        where k.key_id = n.key_id and k.open_requests <> n.open_requests;
    update state.wallets w set held_nano = n.held_nano
        from (select w2.wallet_id, coalesce(sum(a.hold_nano), 0)::bigint as held_nano from state.wallets w2
              left join state.admissions a on a.payer = 'wallet:' || w2.wallet_id group by w2.wallet_id) n
        where w.wallet_id = n.wallet_id and w.held_nano <> n.held_nano;
    update state.sandbox_days set used_nano_usd = 0
        where day >= (clock_timestamp() at time zone 'UTC')::date - 1 and used_nano_usd <> 0;
    insert into state.sandbox_days as d (owner_id, day, used_nano_usd)
        select owner_id, day, sum(nano_usd)::bigint from (
            select a.owner_id, a.cap_day as day, a.hold_nano_usd as nano_usd
            from state.admissions a where a.cap_day is not null
            union all
            select w.owner_id, r.cap_day, state.to_nano_usd(r.payer_charge_nano, r.rate_nano_usd)
            from derived.requests r join state.wallets w using (wallet_id)
            where r.cap_day >= (clock_timestamp() at time zone 'UTC')::date - 1 and r.status = 'charged'
              and not exists (select from state.admissions a where a.request_id = r.request_id)
        ) uses group by owner_id, day
        on conflict (owner_id, day) do update set used_nano_usd = excluded.used_nano_usd;
    return restored;
end $$;

-- As in 0003, with the work in the function above.
create or replace function state.open_admission(a_server_id text) returns int
language plpgsql as $$
declare
    restored int;
begin
    if state.server_id() <> a_server_id then
        return null;
    end if;
    restored := state.make_admissions_right();
    insert into state.readiness (server_id) values (a_server_id)
        on conflict (only_row) do update set server_id = excluded.server_id;
    return restored;
end $$;

-- PostgreSQL empties it whenever it recovers from a crash. Where one backend was killed the server recovers without a new
-- start, so state.server_id() stays: the missing row is what tells (C7). A promoted standby has none either.
alter table state.readiness set unlogged;

-- What an operator says, signed, of a record of ledger.events that cannot be read (S18): schemas/errata.py. That a row
-- stands here has no effect by itself: every reader checks signature, key, hash and that the record is unreadable.
create table state.errata (
    partition     int not null check (partition >= 0),
    "offset"      bigint not null check ("offset" >= 0),
    record_sha256 bytea not null check (length(record_sha256) = 32),
    reason        text not null,
    operator      text not null,
    at_ms         bigint not null,
    public_key    bytea not null check (length(public_key) = 32),
    signature     bytea not null check (length(signature) = 64),
    created_at    timestamptz not null default now(),
    primary key (partition, "offset", record_sha256, public_key)
);
