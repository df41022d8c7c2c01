-- Admission: one call decides everything that a request needs, or refuses and consumes nothing.
--
-- Lock order: keys, wallets, sandbox_days, admissions (see 0001_state.sql).

-- Outcomes, in order of precedence:
--   catching_up           the server restarted; the projection has not yet read to the log's end of then (C7)
--   owner_lapsed          the calling ingress has no living lease: the expiry may already own its requests (C3)
--   invalid_key           unknown id or another secret
--   key_revoked
--   open_request_cap      the key has open_max requests open
--   daily_cap_exceeded    a sandbox owner's UTC day is used up
--   insufficient_balance  balance minus holds is below this hold
--   ok
-- Idempotent by request id: a repeated call answers what the first one did and takes nothing twice.
create function state.admit(
    a_request_id uuid, a_key_id text, a_sha256 bytea, a_hold_nano bigint, a_owner text, a_node_id text, a_model text,
    a_lane text, a_lane_offset bigint, a_cap_nano_usd bigint, a_dry_run boolean,
    out outcome text, out wallet_id text, out tier text, out payer text, out asset text, out rate_nano_usd bigint,
    out cap_day date, out now_ms bigint, out available_nano bigint, out open_max int
) language plpgsql as $$
declare
    k state.keys;
    w state.wallets;
    day_used bigint;
    hold_nano_usd bigint := 0;
begin
    -- Local to this transaction: an admission that a crash forgets is made again from the log (C7), so it need not wait
    -- for the disk.
    perform set_config('synchronous_commit', 'off', true);
    now_ms := floor(extract(epoch from clock_timestamp()) * 1000);
    if not exists (select from state.readiness r where r.server_id = state.server_id()) then
        outcome := 'catching_up';
        return;
    end if;
    if not exists (select from state.ingresses i where i.boot_id = a_owner and i.lease_until > clock_timestamp()) then
        outcome := 'owner_lapsed';
        return;
    end if;

    select * into k from state.keys where key_id = a_key_id for no key update;
    if not found or k.sha256 <> a_sha256 then
        outcome := 'invalid_key';
        return;
    end if;
    wallet_id := k.wallet_id;
    tier := k.tier;
    open_max := k.open_max;
    if k.revoked_at is not null then
        outcome := 'key_revoked';
        return;
    end if;
    select * into w from state.wallets where wallets.wallet_id = k.wallet_id for no key update;
    asset := w.asset;
    select r.nano_usd into rate_nano_usd from state.rates r where r.asset = w.asset;

    -- After the locks, so that a repeated call waits for the first one and then sees its row.
    select a.payer, a.cap_day into payer, cap_day from state.admissions a where a.request_id = a_request_id;
    if found then
        outcome := 'ok';
        return;
    end if;
    if k.open_requests >= k.open_max then
        outcome := 'open_request_cap';
        return;
    end if;

    if k.tier = 'dev' then
        payer := 'platform:sandbox';
        cap_day := (clock_timestamp() at time zone 'UTC')::date;
        hold_nano_usd := state.to_nano_usd(a_hold_nano, rate_nano_usd);
        select d.used_nano_usd into day_used from state.sandbox_days d
            where d.owner_id = w.owner_id and d.day = cap_day for no key update;
        if not found then
            -- There must be a row to lock: two wallets of one owner may both be at the day's first request.
            insert into state.sandbox_days (owner_id, day) values (w.owner_id, cap_day) on conflict do nothing;
            select d.used_nano_usd into day_used from state.sandbox_days d
                where d.owner_id = w.owner_id and d.day = cap_day for no key update;
        end if;
        available_nano := a_cap_nano_usd - day_used;
        if available_nano < hold_nano_usd then
            outcome := 'daily_cap_exceeded';
            return;
        end if;
    else
        payer := 'wallet:' || w.wallet_id;
        -- The wallet's row is locked: the projection changes balance and held_nano in one transaction behind that lock.
        select coalesce(sum(c.balance_nano), 0) - w.held_nano into available_nano from derived.accounts c
            where c.account = payer and c.asset = w.asset and c.partition = w.partition;
        if available_nano < a_hold_nano then
            outcome := 'insufficient_balance';
            return;
        end if;
    end if;
    outcome := 'ok';
    if a_dry_run then
        return;
    end if;

    -- After this point the call succeeds.
    insert into state.admissions (request_id, key_id, wallet_id, owner_id, payer, asset, hold_nano, hold_nano_usd,
                                  cap_day, rate_nano_usd, owner, node_id, model, lane, lane_offset)
        values (a_request_id, k.key_id, w.wallet_id, w.owner_id, payer, w.asset, a_hold_nano, hold_nano_usd,
                cap_day, rate_nano_usd, a_owner, a_node_id, a_model, a_lane, a_lane_offset);
    update state.keys set open_requests = open_requests + 1 where key_id = k.key_id;
    if k.tier = 'dev' then
        update state.sandbox_days d set used_nano_usd = d.used_nano_usd + hold_nano_usd
            where d.owner_id = w.owner_id and d.day = cap_day;
    else
        update state.wallets set held_nano = held_nano + a_hold_nano where wallets.wallet_id = w.wallet_id;
    end if;
end $$;

-- Nano units of an asset in nano USD, rounded up: a cap is never passed by rounding.
create function state.to_nano_usd(amount_nano bigint, rate_nano_usd bigint) returns bigint
language sql immutable as
$$ select least(ceil(amount_nano::numeric * rate_nano_usd / 1000000000), 9000000000000000000)::bigint $$;

-- The end of a request is acked in the log: its hold shrinks to the charge and its slot is free at once, so that the
-- next request is not refused because the projection lags (S4). An update and never an upsert: where the projection was
-- faster there is no row any more and nothing to do. `a_charge_nano` is what the accepted payer pays.
create function state.settle(a_request_id uuid, a_charge_nano bigint) returns boolean
language plpgsql as $$
declare
    a state.admissions;
    usd bigint;
begin
    perform set_config('synchronous_commit', 'off', true);
    select * into a from state.admissions where request_id = a_request_id;
    if not found then
        return false;
    end if;
    perform from state.keys where key_id = a.key_id for no key update;
    perform from state.wallets where wallet_id = a.wallet_id for no key update;
    perform from state.sandbox_days where owner_id = a.owner_id and day = a.cap_day for no key update;
    select * into a from state.admissions where request_id = a_request_id for update;
    if not found or not a.slot or a_charge_nano > a.hold_nano then
        return false;
    end if;
    usd := case when a.cap_day is null then 0 else state.to_nano_usd(a_charge_nano, a.rate_nano_usd) end;
    update state.admissions set slot = false, hold_nano = a_charge_nano, hold_nano_usd = usd
        where request_id = a_request_id;
    update state.keys set open_requests = open_requests - 1 where key_id = a.key_id;
    if a.payer = 'wallet:' || a.wallet_id then
        update state.wallets set held_nano = held_nano - (a.hold_nano - a_charge_nano) where wallet_id = a.wallet_id;
    elsif a.cap_day is not null then
        update state.sandbox_days set used_nano_usd = used_nano_usd - (a.hold_nano_usd - usd)
            where owner_id = a.owner_id and day = a.cap_day;
    end if;
    return true;
end $$;

-- The projection's half: requests that ended in the log give back slot and hold, in the transaction that books them.
-- Beside `a_request_ids` run the wallet of each and what the payer of its admission was charged, which stays counted
-- against a sandbox day. No id comes twice; one without an admission of that wallet is skipped.
create function state.release(a_request_ids uuid[], a_wallet_ids text[], a_charges_nano bigint[]) returns void
language plpgsql as $$
begin
    perform from state.keys where key_id in (select a.key_id from state.admissions a
        where a.request_id = any (a_request_ids)) order by key_id for no key update;
    perform from state.wallets where wallet_id in (select a.wallet_id from state.admissions a
        where a.request_id = any (a_request_ids)) order by wallet_id for no key update;
    perform from state.sandbox_days where (owner_id, day) in (select a.owner_id, a.cap_day from state.admissions a
        where a.request_id = any (a_request_ids)) order by owner_id, day for no key update;
    with ended as (
        select * from unnest(a_request_ids, a_wallet_ids, a_charges_nano) as e (request_id, wallet_id, charge_nano)
    ), gone as (
        delete from state.admissions a using ended e where a.request_id = e.request_id and a.wallet_id = e.wallet_id
        returning a.*, case when a.cap_day is null then 0
                            else state.to_nano_usd(e.charge_nano, a.rate_nano_usd) end as kept_nano_usd
    ), freed_slots as (
        update state.keys k set open_requests = open_requests - g.n
        from (select key_id, count(*) as n from gone where slot group by key_id) g where k.key_id = g.key_id
    ), freed_holds as (
        update state.wallets w set held_nano = held_nano - g.held
        from (select wallet_id, sum(hold_nano)::bigint as held from gone where payer = 'wallet:' || wallet_id
              group by wallet_id) g where w.wallet_id = g.wallet_id
    )
    update state.sandbox_days d set used_nano_usd = used_nano_usd - g.unused
    from (select owner_id, cap_day, sum(hold_nano_usd - kept_nano_usd)::bigint as unused from gone
          where cap_day is not null group by owner_id, cap_day) g
    where d.owner_id = g.owner_id and d.day = g.cap_day;
end $$;

-- The last step of C7: the projection has read to the end that the log had after this server started. Requests that are
-- open in the log and have no admission were forgotten in a crash: their holds and slots are made again, and every
-- counter is counted anew. Returns how many were made again; null where the server has restarted once more meanwhile.
create function state.open_admission(a_server_id text) returns int
language plpgsql as $$
declare
    restored int;
begin
    if state.server_id() <> a_server_id then
        return null;
    end if;
    -- Nobody admits now; settle() and release() wait for us, at their first row lock: a weaker mode would let them lock
    -- a row of keys and then wait for us at the next table, while we wait for that row.
    lock table state.keys, state.wallets, state.sandbox_days, state.admissions in exclusive mode;
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
    update state.readiness set server_id = a_server_id;
    return restored;
end $$;
