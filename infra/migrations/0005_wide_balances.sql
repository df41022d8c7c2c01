-- Balances beyond a bigint. An amount of one event is at most 1e18 nano, but a balance is a sum over all of them: ten
-- credits of that size overflow a bigint, which stopped the projection. numeric(38, 0) is 20 digits wider and exact;
-- the projection writes an account once for a slice, so that its arithmetic is slower does not show.

alter table derived.accounts alter column balance_nano type numeric(38, 0);

-- As in 0003 but for the balance.
create or replace function state.admit(
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
        -- A hold is at most 1e18: what lies beyond a bigint on either side is as good as its last number.
        select greatest(least(coalesce(sum(c.balance_nano), 0) - w.held_nano, 9223372036854775807),
                        -9223372036854775807) into available_nano
            from derived.accounts c
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
